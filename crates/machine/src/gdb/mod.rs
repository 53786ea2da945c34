//! The GDB remote protocol: a debugger outside the guest that stops, reads,
//! changes and steps it, on either engine.
//!
//! [`Machine::serve_gdb`](crate::Machine::serve_gdb) listens on a TCP address;
//! one debugger at a time. Each vCPU is a thread, numbered from 1. While the
//! debugger holds the machine all vCPUs stand; the guest's clock goes on.

mod memory;
mod registers;
mod target;

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Weak;
use std::time::Duration;

use gdbstub::common::Signal;
use gdbstub::conn::{Connection, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};

use crate::machine::Inner;
use target::{Debugged, GdbError};

/// How often a waiting thread looks whether its other half has news.
const TURN: Duration = Duration::from_millis(10);

/// Accepts debuggers until the machine is gone.
pub(crate) fn serve(listener: &TcpListener, machine: &Weak<Inner>) {
    if let Err(error) = listener.set_nonblocking(true) {
        tracing::warn!(%error, "the GDB port cannot be served");
        return;
    }
    loop {
        let Some(inner) = machine.upgrade().filter(|m| !m.control().has_ended()) else {
            return;
        };
        match listener.accept() {
            Ok((stream, peer)) => {
                tracing::info!(%peer, "debugger connected");
                let end = session(stream, &inner);
                inner.control().detach_debugger();
                tracing::info!(%peer, how = end, "debugger gone");
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                drop(inner);
                std::thread::sleep(TURN * 5);
            }
            Err(error) => tracing::warn!(%error, "accepting a debugger"),
        }
    }
}

/// One debugger from its first byte to its last; how it ended, for the log.
fn session(stream: TcpStream, machine: &Inner) -> String {
    if let Err(e) = stream.set_nonblocking(false) {
        return e.to_string();
    }
    let mut target = match Debugged::attach(machine) {
        Ok(target) => target,
        Err(e) => return e.to_string(),
    };
    let ended = GdbStub::new(stream).run_blocking::<Loop<'_>>(&mut target);
    target.let_go();
    match ended {
        Ok(DisconnectReason::Disconnect) => "detached".into(),
        Ok(DisconnectReason::Kill) => {
            machine.control().post(crate::control::Event::Stop);
            "killed the machine".into()
        }
        Ok(_) => "the machine ended".into(),
        Err(e) => e.to_string(),
    }
}

/// Waits for the machine and the debugger by turns.
struct Loop<'a>(std::marker::PhantomData<&'a ()>);

impl<'a> BlockingEventLoop for Loop<'a> {
    type Target = Debugged<'a>;
    type Connection = TcpStream;
    type StopReason = MultiThreadStopReason<u64>;

    fn wait_for_stop_reason(
        target: &mut Debugged<'a>,
        connection: &mut TcpStream,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<GdbError, io::Error>> {
        loop {
            if connection
                .peek()
                .map_err(WaitForStopReasonError::Connection)?
                .is_some()
            {
                let byte = ConnectionExt::read(connection);
                return byte
                    .map(Event::IncomingData)
                    .map_err(WaitForStopReasonError::Connection);
            }
            if let Some(reason) = target.stopped(TURN) {
                return Ok(Event::TargetStopped(reason));
            }
        }
    }

    fn on_interrupt(target: &mut Debugged<'a>) -> Result<Option<Self::StopReason>, GdbError> {
        target.halt()?;
        Ok(Some(MultiThreadStopReason::SignalWithThread {
            tid: target::tid(0),
            signal: Signal::SIGINT,
        }))
    }
}

// The stub flushes each of its answers; without this Nagle's algorithm would
// hold the second of two small ones back.
const _: fn(&mut TcpStream) -> Result<(), io::Error> = <TcpStream as Connection>::flush;
