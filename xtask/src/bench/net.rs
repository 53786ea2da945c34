//! The user networks of both sides, from inside the image `debian`: a stream
//! each way and round trips, to a server on the host's loopback.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use super::debian::qemu_debian;
use super::figures::Figures;
use super::sides::{PATIENCE, Side, Sides};
use crate::console::Console;
use crate::host;

/// MiB of a stream, and round trips, at full scale.
const MEBIBYTES: u32 = 512;
const ROUND_TRIPS: u32 = 3000;
/// The host's address in both networks.
const HOST: &str = "10.0.2.2";

impl Sides {
    /// Streams both ways, and round trips.
    ///
    /// # Errors
    /// If a guest does not get there.
    pub fn net(&self, side: Side, figures: &mut Figures) -> Result<()> {
        let program = self.parts.workloads.join("netload");
        let bytes = fs::read(&program).context("reading the network workload")?;
        let port = serve(bytes)?;
        let streams = (MEBIBYTES * self.scale / 100).max(8);
        let trips = (ROUND_TRIPS * self.scale / 100).max(100);
        let runs = |program: &str, to: &str| {
            format!(
                "{program} put {to} {port} {streams}; {program} get {to} {port} {streams}; \
                 {program} rr {to} {port} {trips}"
            )
        };
        let output = match side {
            Side::Native => {
                let script = runs(&program.to_string_lossy(), "127.0.0.1");
                host::output(Command::new("sh").args(["-c", &script]))?
            }
            Side::Holm => {
                self.in_debian(&mut self.holm_debian()?, port, &runs("/tmp/load", HOST))?
            }
            Side::Tcg => self.in_debian(&mut qemu_debian()?, port, &runs("/tmp/load", HOST))?,
        };
        if figures.add_lines("net", side, &output) != 3 {
            bail!("the network under {side} printed no three results:\n{output}");
        }
        Ok(())
    }

    fn in_debian(&self, command: &mut Command, port: u16, script: &str) -> Result<String> {
        let mut console = Console::start(command)?;
        console.expect("debian login: ", PATIENCE)?;
        console.send("root\n")?;
        console.expect("root@debian:~# ", PATIENCE)?;
        // The program itself comes by the network.
        console.send(&format!(
            "until ip -4 addr show dev eth0 | grep -q inet; do sleep 0.2; done; \
             exec 3<> /dev/tcp/{HOST}/{port}; echo -n f >&3; cat <&3 > /tmp/load; exec 3>&-; \
             chmod +x /tmp/load; echo READ\"Y\"; {script}; echo DO\"NE\"\n"
        ))?;
        console.expect("READY", PATIENCE)?;
        console.expect("DONE", PATIENCE)
    }
}

/// Serves the program itself, streams and echoes on a port of the loopback.
fn serve(program: Vec<u8>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on the loopback")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let program = program.clone();
            // A guest that goes away ends its connection, no more.
            thread::spawn(move || answer(stream, &program));
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream, program: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    if kind == *b"f" {
        return stream.write_all(program);
    }
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    let count = u64::from_be_bytes(count);
    let mut buffer = vec![0x55; 256 << 10];
    match kind[0] {
        b'p' => {
            let mut got = 0;
            while got < count << 20 {
                let read = stream.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                got += read as u64;
            }
            stream.write_all(&got.to_be_bytes())
        }
        b'g' => {
            for _ in 0..count * 4 {
                stream.write_all(&buffer)?;
            }
            Ok(())
        }
        _ => {
            for _ in 0..count {
                stream.read_exact(&mut buffer[..64])?;
                stream.write_all(&buffer[..64])?;
            }
            Ok(())
        }
    }
}
