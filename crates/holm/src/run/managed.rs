//! `holm run` of a machine that a daemon keeps: makes it, tells how it comes up,
//! and attaches this terminal to its console, or prints what it prints.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use api::resources::instances::InstanceView;
use machine_protocol::Keyboard;
use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::arguments::Run;
use crate::console::terminal;
use crate::exit_code;
use crate::form::{self, Output};
use crate::named::client::Client as Control;
use crate::named::{console, find};
use crate::plane;
use crate::plane::boot::{self, Until};
use crate::plane::client::{Client, PlaneError};
use crate::plane::create::{self, Order};
use crate::socket;

/// How much of what was printed before is printed, in bytes: all that is kept.
const REPLAY: u64 = 256 << 10;

/// Between two looks whether Enter was pressed.
const LOOK: Duration = Duration::from_millis(100);

/// How long a rebooted machine's process may take to be there again.
const REBOOT: Duration = Duration::from_secs(10);

/// Makes the machine; the exit status.
pub fn run(arguments: &Run) -> u8 {
    let client = Client::new();
    let order = Order {
        image: arguments.image.as_deref().unwrap_or_default(),
        name: arguments.name.as_deref(),
        count: 1,
        ttl: arguments.ttl,
        rm: arguments.rm,
        launch: &arguments.launch,
    };
    let mut made = match order.make(&client) {
        Ok(made) => made,
        Err(error) => return plane::finish(Err(error)),
    };
    let output = Output {
        output: arguments.output,
    };
    if arguments.background.detach {
        let (launch, within) = (&arguments.launch, arguments.boot_timeout);
        return plane::finish(create::told(made, launch, within, output));
    }
    match made.pop() {
        Some(one) => attached(arguments, &client, one),
        None => plane::finish(Err(PlaneError::Strange("it made no machine".into()))),
    }
}

fn attached(arguments: &Run, client: &Client, made: InstanceView) -> u8 {
    let shown = made.name.clone().unwrap_or_else(|| made.id.clone());
    if arguments.rm
        && let Err(error) = remove_on_signal(made.id.clone(), shown.clone())
    {
        terminal::say(&format!("holm: watching for signals: {error}"));
    }
    // A person waits for the guest; a log is followed from its beginning.
    let person = std::io::stdin().is_terminal() && form::on_terminal();
    let until = match person {
        true => arguments.launch.wait,
        false => Until::Running,
    };
    let id = made.id.clone();
    let until = until.max(Until::Running);
    let waited = match person {
        true => wait_or_enter(made.clone(), until, arguments.boot_timeout),
        false => boot::wait(client, made.clone(), until, arguments.boot_timeout),
    };
    match waited {
        Ok(now) if !person => tell_the_rest(now, arguments),
        Ok(_) => {}
        // What the guest says of it is seen at its console.
        Err(error) if is_running(client, &id) => terminal::say(&format!("holm: {error}")),
        Err(error) => return plane::finish(Err(error)),
    }
    let code = match at_console(client, &id, &shown) {
        Ok(code) => code,
        Err(error) => return plane::finish(Err(error)),
    };
    if code == exit_code::ENDED_BY_SIGNAL && arguments.rm {
        remove(&id, &shown);
    } else if is_running(client, &id) {
        terminal::say(&format!(
            "holm: {shown} goes on; `holm console {shown}` comes back, `holm rm {shown}` removes it"
        ));
    }
    code
}

/// Shows the console until the machine has ended or the user leaves it; a
/// reboot is no end. The exit status.
fn at_console(client: &Client, id: &str, shown: &str) -> Result<u8, PlaneError> {
    let keyboard = match std::io::stdin().is_terminal() {
        true => Keyboard::IfFree,
        false => Keyboard::No,
    };
    loop {
        let socket = match find::control(id) {
            Ok(socket) => socket,
            Err(find::FindError::Plane(error)) => return Err(error),
            // It was quicker than this.
            Err(_) => return Ok(exit_code::SUCCESS),
        };
        let end = match Control::at(shown, &socket) {
            Ok(control) => console::session(control, shown, keyboard, REPLAY),
            Err(_) => console::End::Ended,
        };
        match end {
            console::End::Ended if comes_back(client, id, &socket) => {}
            console::End::Left | console::End::Ended => return Ok(exit_code::SUCCESS),
            console::End::Other(code) => return Ok(code),
        }
    }
}

/// Whether a machine whose process has ended was only rebooted.
fn comes_back(client: &Client, id: &str, socket: &Path) -> bool {
    let start = Instant::now();
    while start.elapsed() < REBOOT && is_running(client, id) {
        if socket::connect(socket).is_ok() {
            return true;
        }
        std::thread::sleep(LOOK);
    }
    false
}

/// Waits for the guest, or until the person who waits presses Enter.
fn wait_or_enter(
    made: InstanceView,
    until: Until,
    within: Duration,
) -> Result<InstanceView, PlaneError> {
    terminal::say("holm: Enter goes to the console at once");
    let (tell, told) = mpsc::channel();
    let now = made.clone();
    std::thread::spawn(move || {
        // Without a receiver the person is at the console already.
        let _ = tell.send(boot::wait(&Client::new(), made, until, within));
    });
    let stdin = std::io::stdin();
    loop {
        match told.recv_timeout(LOOK) {
            Ok(waited) => return waited,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(now),
        }
        let mut typed = [PollFd::new(&stdin, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut typed, Some(&at_once)).is_ok_and(|ready| ready > 0) {
            let mut line = String::new();
            // What was typed is for nobody.
            let _ = stdin.read_line(&mut line);
            return Ok(now);
        }
    }
}

/// Tells of the stages that follow while what the guest prints is shown.
fn tell_the_rest(now: InstanceView, arguments: &Run) {
    let within = arguments.boot_timeout;
    if arguments.launch.wait == Until::Ready {
        std::thread::spawn(move || {
            if let Err(error @ PlaneError::Which(_)) =
                boot::go_on(&Client::new(), now, Until::Ready, within)
            {
                tracing::info!(%error, "the guest is not ready");
            }
        });
    }
}

fn is_running(client: &Client, id: &str) -> bool {
    let now: Result<InstanceView, _> = client.get(&format!("/v1/instances/{id}"));
    now.is_ok_and(|now| now.state == "running")
}

/// With --rm nothing is left of a machine whose command is interrupted.
fn remove_on_signal(id: String, shown: String) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::Builder::new()
        .name("remove".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                terminal::restore();
                remove(&id, &shown);
                std::process::exit(i32::from(exit_code::ENDED_BY_SIGNAL));
            }
        })?;
    Ok(())
}

fn remove(id: &str, shown: &str) {
    match Client::new().call("DELETE", &format!("/v1/instances/{id}"), None) {
        Ok(_) => terminal::say(&format!("holm: {shown} is removed")),
        Err(error) => terminal::say(&format!("holm: removing {shown}: {error}")),
    }
}
