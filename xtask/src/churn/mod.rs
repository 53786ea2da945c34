//! `cargo xtask churn`: real machines that come and go under a daemon that is
//! killed all the time, and what they leave behind.

mod client;
mod daemon;
mod life;
mod random;
mod traces;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::host::{self, Need};
use crate::image::{self, Name};
use crate::up;
use client::Client;
use daemon::{Daemons, Program, Usage};
use life::{Done, Life, Network, Place};
use random::Random;
use traces::Traces;

const NEEDS: &[Need] = &[
    Need {
        program: "sfdisk",
        package: "fdisk",
        purpose: "make the machines' disk",
    },
    Need {
        program: "mke2fs",
        package: "e2fsprogs",
        purpose: "make the machines' disk",
    },
    Need {
        program: "python3",
        package: "python3",
        purpose: "count the store's records",
    },
];

/// How long what instances leave may take to go.
const GOES: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Churn {
    /// Instances, one after the other
    #[arg(long, default_value_t = 50)]
    real: u64,
    /// Then so many at once
    #[arg(long, default_value_t = 8)]
    at_once: u64,
    /// That many times
    #[arg(long, default_value_t = 4)]
    rounds: u64,
    /// Kills the daemon at random moments, after at most this many seconds each time
    #[arg(long, value_name = "SECONDS")]
    kill_daemon: Option<f64>,
    /// Repeats the choices of another run
    #[arg(long)]
    seed: Option<u64>,
    /// The program, instead of one that is built now
    #[arg(long, value_name = "FILE")]
    holm: Option<PathBuf>,
    /// Where to work, and to leave the daemon's log; a new directory
    #[arg(long, value_name = "DIR")]
    within: Option<PathBuf>,
}

/// Runs it; success means that every instance came to every state that was
/// asked for, and that nothing was left.
///
/// # Errors
/// What went wrong first, and the seed.
pub fn churn(arguments: &Churn) -> Result<ExitCode> {
    let holm = match &arguments.holm {
        Some(holm) => std::path::absolute(holm)?,
        None => host::build_holm()?,
    };
    host::ensure(up::BUILD_NEEDS)?;
    host::ensure(NEEDS)?;
    let seed = arguments.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| u64::from(now.subsec_nanos()))
    });
    let within = match &arguments.within {
        Some(within) => std::path::absolute(within)?,
        None => std::env::temp_dir().join(format!("holm-churn-{}", std::process::id())),
    };
    fs::create_dir(&within).with_context(|| format!("making {}", within.display()))?;
    let program = Program {
        holm,
        state: within.join("state"),
        temporary: within.join("temporary"),
        log: within.join("daemon.log"),
    };
    fs::create_dir(&program.temporary)?;
    eprintln!("xtask: seed {seed}, in {}", within.display());
    let told = run(arguments, &program, seed);
    summarize_log(&program.log);
    told.with_context(|| format!("seed {seed}; the daemon's log is {}", program.log.display()))?;
    fs::remove_dir_all(&within)?;
    Ok(ExitCode::SUCCESS)
}

fn run(arguments: &Churn, program: &Program, seed: u64) -> Result<()> {
    let client = Client::new(&program.state);
    let image = import(program)?;
    // What a first daemon makes, and a first instance of the default network, is no trace.
    let mut first = program.daemon()?;
    daemon::until_ready(&client)?;
    until_image(&client, &image)?;
    let (machines, random) = (program.state.join("machines"), Random::new(seed, u64::MAX));
    let place = Place {
        image: &image,
        subnet: None,
    };
    Life::lead(client.clone(), machines, random, "first".into(), &place)?;
    let before = Traces::look(program, first.id())?;
    let small = daemon::usage(first.id())?;
    first.kill()?;
    first.wait()?;

    let kill = arguments.kill_daemon.map(Duration::from_secs_f64);
    let daemons = Daemons::start(program.clone(), kill, Random::new(seed, 0))?;
    let start = Instant::now();
    let lived = lead_all(arguments, program, &client, &image, seed);
    let took = start.elapsed();
    let killed = daemons.killed();
    let mut last = daemons.spare()?;
    let after = lived.and_then(|done| {
        daemon::until_ready(&client)?;
        let left = until_nothing(program, &before, last.id())?;
        Ok((done, left, daemon::usage(last.id())?))
    });
    // With the machines gone, it can go.
    if let Some(process) = i32::try_from(last.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
    }
    let status = last.wait()?;
    let (done, after, large) = after?;
    if !status.success() {
        bail!("the daemon ended with {status}");
    }
    report(&done, took, killed, [small, large], [&before, &after]);
    Ok(())
}

fn lead_all(
    arguments: &Churn,
    program: &Program,
    client: &Client,
    image: &str,
    seed: u64,
) -> Result<Done> {
    let machines = program.state.join("machines");
    let lead = |number: u64, subnet: Option<&str>| {
        let random = Random::new(seed, number + 1);
        let name = format!("churn-{number}");
        let place = Place { image, subnet };
        Life::lead(client.clone(), machines.clone(), random, name, &place)
    };
    let mut done = Done::default();
    for number in 0..arguments.real {
        done.add(lead(number, None)?);
        eprint!("\rxtask: {} of {}", number + 1, arguments.real);
    }
    for round in 0..arguments.rounds {
        let first = arguments.real + round * arguments.at_once;
        // Every other time in a network of their own, which goes with them.
        let network = match round % 2 {
            0 => Some(Network::make(client, round)?),
            _ => None,
        };
        let subnet = network.as_ref().map(|network| network.subnet.as_str());
        let all = thread::scope(|scope| {
            let lead = &lead;
            let numbers = first..first + arguments.at_once;
            let threads: Vec<_> = numbers
                .map(|number| scope.spawn(move || lead(number, subnet)))
                .collect();
            let ends = threads.into_iter().map(|thread| match thread.join() {
                Ok(end) => end,
                Err(_) => bail!("a thread failed"),
            });
            ends.collect::<Vec<_>>()
        });
        for end in all {
            done.add(end?);
        }
        if let Some(network) = network {
            network.remove(client)?;
        }
        eprint!(
            "\rxtask: {} at once, round {}",
            arguments.at_once,
            round + 1
        );
    }
    eprintln!();
    Ok(done)
}

/// Waits until nothing is left; what is there then.
fn until_nothing(program: &Program, before: &Traces, daemon: u32) -> Result<Traces> {
    let end = Instant::now() + GOES;
    loop {
        let now = Traces::look(program, daemon)?;
        let left = now.since(before);
        if left.is_empty() {
            return Ok(now);
        }
        if Instant::now() > end {
            bail!("this is left:\n  {}", left.join("\n  "));
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// A disk that starts `tiny`, as an image of the library; its name.
fn import(program: &Program) -> Result<String> {
    const MENU: &str =
        "menuentry Tiny { linux /boot/vmlinuz console=ttyS0 quiet\n initrd /boot/initrd }\n";
    let tiny = image::make(Name::Tiny, false)?;
    let within = program.log.parent().unwrap_or(Path::new("/"));
    let (root, disk) = (within.join("root"), within.join("disk.img"));
    fs::create_dir_all(root.join("boot/grub"))?;
    for file in ["vmlinuz", "initrd"] {
        fs::copy(tiny.join(file), root.join("boot").join(file))?;
    }
    fs::write(root.join("boot/grub/grub.cfg"), MENU)?;
    fs::File::create(&disk)?.set_len(66 << 20)?;
    let (at, from) = (disk.display(), root.display());
    let script = format!(
        "PATH=$PATH:/usr/sbin:/sbin; printf 'label: gpt\\nstart=1MiB, size=64MiB, type=L\\n' | \
         sfdisk -q {at} && mke2fs -q -F -t ext4 -d {from} -E offset=1048576 {at} 64M"
    );
    host::output(Command::new("sh").args(["-c", &script]))?;
    let mut import = program.command();
    host::output(import.args(["image", "import"]).arg(&disk).arg("tiny"))?;
    fs::remove_dir_all(&root)?;
    fs::remove_file(&disk)?;
    Ok("tiny@1".into())
}

/// Waits until the daemon offers the image.
fn until_image(client: &Client, image: &str) -> Result<()> {
    let end = Instant::now() + GOES;
    loop {
        let all = client.all("/v1/images")?;
        if all
            .iter()
            .any(|i| i["name"] == image && i["state"] == "available")
        {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("the daemon does not offer {image}: {all:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn report(
    done: &Done,
    took: Duration,
    killed: u64,
    [small, large]: [Usage; 2],
    [before, after]: [&Traces; 2],
) {
    let ended = done.to_terminated.len();
    println!(
        "{ended} instances made and terminated in {took:.1?}; the daemon was killed {killed} times"
    );
    println!(
        "{} stops and starts, {} reboots, {} volumes attached and detached, {} snapshots, \
         {} machine processes killed, {} ended before they ran, {} times the same process as before",
        done.stops,
        done.reboots,
        done.attachments,
        done.snapshots,
        done.deaths,
        done.cut_short,
        done.same_process
    );
    for (what, times) in [
        ("request to running", &done.to_running),
        ("request to terminated", &done.to_terminated),
    ] {
        let mut times = times.clone();
        times.sort();
        let at = |part: usize| {
            times
                .get(times.len() * part / 100)
                .copied()
                .unwrap_or_default()
        };
        println!("{what}: median {:.2?}, p95 {:.2?}", at(50), at(95));
    }
    println!(
        "daemon: {} to {} KiB resident, {} to {} open files, {} to {} threads",
        small.resident, large.resident, small.files, large.files, small.threads, large.threads
    );
    println!("records before: {:?}", before.records);
    println!("records after:  {:?}", after.records);
    println!(
        "nothing is left: no process, file, socket, port, lease, or record that is not history"
    );
}

/// What the daemons warned of, by how often.
fn summarize_log(log: &Path) {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut kinds: BTreeMap<String, (u64, &str)> = BTreeMap::new();
    for line in text.lines() {
        let Some((_, said)) = line.split_once(" WARN ").or(line.split_once("ERROR ")) else {
            continue;
        };
        let words = said.split(' ').take_while(|word| !word.contains('='));
        let kind = words.collect::<Vec<_>>().join(" ");
        kinds.entry(kind).or_insert((0, line)).0 += 1;
    }
    for (kind, (count, first)) in kinds {
        eprintln!("log: {count} times: {kind}\n     first: {first}");
    }
}
