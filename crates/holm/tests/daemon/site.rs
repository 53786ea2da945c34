//! A state directory with an image of `tiny`, and daemons on it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use control::{Caller, CreateImage, Plane, RegisterImage, RunInstances};
use host::{Driver, Layout, Observed, Patience, Real, RealConfig, Reconciler};
use images::{ImportOptions, Library};
use model::{Event, Image, ImageState, Instance, InstanceId, InstanceState, Tags};
use store::Sqlite;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::common::{self, BOOT};

const MENU: &str =
    "menuentry Tiny { linux /boot/vmlinuz console=ttyS0 quiet\n initrd /boot/initrd }\n";

pub struct Site {
    pub plane: Plane,
    pub caller: Caller,
    pub layout: Layout,
    pub driver: Arc<Real>,
    image: Image,
    state: TempDir,
}

/// A daemon in this process; it dies with the value.
pub struct Daemon {
    task: JoinHandle<()>,
    reconciler: Arc<Reconciler>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn tool(line: &str) {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    let done = shell.args(["-c", line]).env("PATH", path).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {error}");
}

/// A disk that starts `tiny`.
pub fn disk(directory: &Path) -> std::path::PathBuf {
    let tiny = common::image("tiny");
    let root = directory.join("root");
    let boot = root.join("boot");
    fs::create_dir_all(boot.join("grub")).unwrap();
    fs::copy(tiny.join("vmlinuz"), boot.join("vmlinuz")).unwrap();
    fs::copy(tiny.join("initrd"), boot.join("initrd")).unwrap();
    fs::write(boot.join("grub/grub.cfg"), MENU).unwrap();
    let disk = directory.join("disk.img");
    fs::File::create(&disk).unwrap().set_len(66 << 20).unwrap();
    let (disk_text, root) = (disk.display(), root.display());
    tool(&format!(
        "printf 'label: gpt\\nstart=1MiB, size=64MiB, type=L\\n' | sfdisk -q {disk_text} && \
         mke2fs -q -F -t ext4 -d {root} -E offset=1048576 {disk_text} 64M"
    ));
    disk
}

impl Site {
    pub async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let layout = Layout::new(state.path().join("state"));
        let store = Sqlite::open(&layout.store()).unwrap();
        let plane = Plane::open(Arc::new(store)).await.unwrap();
        let caller = Caller::owner(plane.site().unwrap().account);
        let config = RealConfig {
            program: env!("CARGO_BIN_EXE_holm").into(),
            layout: layout.clone(),
        };
        let (driver, _) = Real::new(config).unwrap();
        let image = import(&layout, &plane, &caller, state.path()).await;
        Self {
            plane,
            caller,
            layout,
            driver: Arc::new(driver),
            image,
            state,
        }
    }

    pub fn daemon(&self) -> Daemon {
        let config = RealConfig {
            program: env!("CARGO_BIN_EXE_holm").into(),
            layout: self.layout.clone(),
        };
        let (driver, changes) = Real::new(config).unwrap();
        let patience = Patience {
            stop: Duration::from_secs(1),
            terminate: Duration::from_secs(1),
            boot: Duration::from_secs(2),
            ..Patience::default()
        };
        let (plane, layout) = (self.plane.clone(), self.layout.clone());
        let reconciler = Reconciler::new(plane, Arc::new(driver), layout, patience);
        Daemon {
            task: tokio::spawn(reconciler.clone().run(changes)),
            reconciler,
        }
    }

    pub async fn run(&self) -> InstanceId {
        self.run_of(&self.image).await
    }

    /// An image of an instance as it is now.
    pub async fn image_of(&self, id: &InstanceId) -> Image {
        let new = CreateImage {
            instance: id.clone(),
            name: "copy".into(),
            description: String::new(),
            tags: Tags::new(),
            snapshot_tags: Tags::new(),
        };
        let image = self.plane.create_image(&self.caller, new).await.unwrap();
        let now = || self.plane.view().get::<Image>(&image.id).unwrap();
        let done = async || {
            let now = now();
            assert_ne!(now.record.state, ImageState::Failed, "{now:?}");
            now.record.state == ImageState::Available
        };
        self.wait("the image", done).await;
        now().record.clone()
    }

    pub async fn run_of(&self, image: &Image) -> InstanceId {
        let new = RunInstances::new(image.id.clone(), "t2.nano");
        let launched = self.plane.run_instances(&self.caller, new, None).await;
        launched.unwrap().instances.remove(0).id
    }

    async fn wait(&self, what: &str, test: impl AsyncFn() -> bool) {
        let waited = tokio::time::timeout(BOOT, async {
            while !test().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        if waited.await.is_err() {
            panic!(
                "not in time: {what}\n{:#?}",
                self.plane.view().all::<Instance>()
            );
        }
    }

    pub async fn until(&self, id: &InstanceId, state: InstanceState) {
        let is = async || {
            let found = self.plane.view().get::<Instance>(id).unwrap();
            let now = found.record.state;
            let gone = now == InstanceState::Terminated && now != state;
            assert!(!gone, "{:?}", found.record.state_reason);
            now == state
        };
        self.wait(state.name(), is).await;
    }

    pub async fn until_settled(&self, daemon: &Daemon) {
        self.wait("settled", async || daemon.reconciler.is_settled())
            .await;
    }

    pub async fn until_console(&self, id: &InstanceId, text: &str) {
        let printed = async || {
            let log = self.driver.console_log(id.as_str(), 1 << 20).await.unwrap();
            String::from_utf8_lossy(&log).contains(text)
        };
        self.wait(text, printed).await;
    }

    /// The machine tells it, and it is an event of the instance.
    pub async fn until_event(&self, id: &InstanceId, kind: &str) {
        let of = |e: &Event| e.resource == id.as_str() && e.kind == kind;
        let told = async || !self.plane.view().filter::<Event>(of).is_empty();
        self.wait(kind, told).await;
    }

    pub async fn process(&self, id: &InstanceId) -> u32 {
        match self.driver.observe(id.as_str()).await.unwrap() {
            Observed::Running { facts, .. } => facts.pid,
            other => panic!("{other:?}"),
        }
    }

    /// No process, socket or file of any machine is left.
    pub fn leaves_nothing(&self) {
        let names = |path: &Path| -> Vec<String> {
            let entries = fs::read_dir(path).map(|entries| {
                let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
                names.filter(|name| !name.starts_with('.')).collect()
            });
            entries.unwrap_or_default()
        };
        assert_eq!(names(&self.layout.machines()), [""; 0]);
        // The image that was made is a snapshot.
        assert_eq!(names(&self.layout.volumes()), ["snapshots"]);
        let left = names(&self.layout.networks());
        for network in left {
            let members = names(&self.layout.network(&network));
            assert_eq!(members, [""; 0], "in {network}");
        }
        let state = self.state.path().to_str().unwrap();
        for process in fs::read_dir("/proc").unwrap() {
            let line = fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            assert!(!line.contains(state), "a process is left: {line}");
        }
    }
}

/// An image of `tiny`, made in a directory.
pub async fn import(layout: &Layout, plane: &Plane, caller: &Caller, within: &Path) -> Image {
    let library = Library::open(&layout.images()).unwrap();
    let disk = disk(within);
    let options = ImportOptions::default();
    let digest = library.import(&disk, &options, &mut |_, _| {}).unwrap();
    register(plane, caller, &digest.to_string()).await
}

/// Works with the store of a state directory that no daemon has.
pub fn with_plane<T>(layout: &Layout, work: impl AsyncFnOnce(Plane, Caller) -> T) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = loop {
            match Sqlite::open(&layout.store()) {
                // By a child of a killed daemon that is about to become another program.
                Err(store::StoreError::InUse { .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => break other.unwrap(),
            }
        };
        let plane = Plane::open(Arc::new(store)).await.unwrap();
        let caller = Caller::owner(plane.site().unwrap().account);
        work(plane, caller).await
    })
}

async fn register(plane: &Plane, caller: &Caller, digest: &str) -> Image {
    let snapshot = plane.adopt_snapshot(caller, digest, 66 << 20, 0, "").await;
    let new = RegisterImage::of("tiny", snapshot.unwrap().id);
    plane.register_image(caller, new).await.unwrap()
}
