//! The REST interface, on its Unix socket and by TCP.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use api::{App, Certificate, Consoles, Limits, Parts, TlsDoor, UnixDoor};
use async_trait::async_trait;
use host::Driver;
use model::InstanceId;
use prometheus::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::{Daemon, DaemonError};
use crate::console::terminal;

/// The certificate of the TCP port and its key, in the state directory.
const CERTIFICATE: &str = "api.pem";
/// Most that is read of a console, in bytes.
const CONSOLE_MAX: usize = 256 << 10;

struct DriversConsoles(Arc<dyn Driver>);

#[async_trait]
impl Consoles for DriversConsoles {
    async fn console(&self, instance: &InstanceId) -> Result<Vec<u8>, String> {
        let read = self.0.console_log(instance.as_str(), CONSOLE_MAX).await;
        read.map_err(|e| e.to_string())
    }
}

/// Serves until the daemon ends.
pub fn serve(
    daemon: &Daemon,
    unix: UnixListener,
    tcp: Option<TcpListener>,
    ec2: &TcpListener,
    registry: Registry,
    serving: &mut JoinSet<()>,
) -> Result<(), DaemonError> {
    let root = daemon.layout.root();
    let owner = std::fs::metadata(root)
        .map_err(DaemonError::host("looking at the state directory"))?
        .uid();
    let ec2 = ec2.local_addr().map_err(DaemonError::host("listening"))?;
    let app = App::new(Parts {
        plane: daemon.plane.clone(),
        owner,
        registry,
        consoles: Arc::new(DriversConsoles(daemon.driver.clone())),
        ec2_endpoint: Some(format!("http://{ec2}")),
        limits: Limits::default(),
    })
    .map_err(|e| failed(e.to_string()))?;
    let router = api::router(app.clone());
    if let Some(listener) = tcp {
        let certificate = Certificate::load_or_make(&root.join(CERTIFICATE), &names());
        let certificate = certificate.map_err(|e| failed(e.to_string()))?;
        let address = listener
            .local_addr()
            .map_err(DaemonError::host("listening"))?;
        terminal::say(&format!(
            "holm: REST at https://{address}; SHA-256 of its certificate: {}",
            certificate.fingerprint()
        ));
        let door = TlsDoor::new(listener, &certificate);
        let door = door.map_err(DaemonError::host("using the certificate"))?;
        let (ended, router) = (daemon.clone(), router.clone());
        serving.spawn(async move { door.serve(router, ended.ended()).await });
    }
    let ended = daemon.clone();
    serving.spawn(async move { UnixDoor::new(unix).serve(router, ended.ended()).await });
    let ended = daemon.clone();
    serving.spawn(async move {
        ended.ended().await;
        app.end_watches();
    });
    Ok(())
}

fn failed(reason: String) -> DaemonError {
    DaemonError::Host {
        doing: "starting the REST interface".into(),
        source: io::Error::other(reason),
    }
}

/// Names of this host, for the certificate.
fn names() -> Vec<String> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_str().ok();
    name.filter(|n| n.is_ascii() && !n.is_empty())
        .map(str::to_owned)
        .into_iter()
        .collect()
}
