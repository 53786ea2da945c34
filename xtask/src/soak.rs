//! `cargo xtask soak`: hours of verified stress in the `debian` guest.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::image::{self, Name};
use crate::{guest, host, up};

/// stress-ng's stressors whose results can be verified, over everything that an
/// emulated CPU and machine could get wrong.
const STRESSORS: &str = "cpu,matrix,vecmath,vecwide,vecfp,vecshuf,fp,fp-error,crypt,hash,funccall,branch,goto,longjmp,\
    tree,bsearch,qsort,hsearch,str,wcs,malloc,mmap,mremap,vm,vm-splice,shm,madvise,mprotect,\
    fork,vfork,exec,clone,pthread,mutex,futex,sem,sem-sysv,pipe,pipeherd,sigfd,sigq,sigsegv,\
    sigfpe,sigtrap,signest,timer,timerfd,itimer,nanosleep,poll,epoll,eventfd,hdd,io,readahead,\
    fallocate,rename,dentry,dir,link,lockf,flock,fcntl,atomic,membarrier,memcpy,stream,\
    bad-altstack,context,x86syscall,vdso,getrandom";

#[derive(Args)]
pub struct Soak {
    /// Minutes of stress
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// Options for `holm run`, after `--`
    #[arg(last = true)]
    options: Vec<String>,
}

/// Runs it; success means that stress-ng found no wrong result and the kernel
/// complained about nothing.
///
/// # Errors
/// If the guest does not boot or does not come back.
pub fn soak(arguments: &Soak) -> Result<ExitCode> {
    let holm = host::build_holm()?;
    host::ensure(up::BUILD_NEEDS)?;
    image::make(Name::Debian, false)?;
    let mut options = arguments.options.clone();
    for (option, value) in [("--cpus", "2"), ("--memory", "2G")] {
        if !options.iter().any(|given| given == option) {
            options.extend([option.into(), value.into()]);
        }
    }
    let stressors = STRESSORS.split(',').count() as u64;
    let each = (arguments.minutes * 60 / stressors).max(5);
    let command = command(each);
    eprintln!("xtask: {stressors} stressors, {each} s each, on 2 instances, verified");
    let patience = Duration::from_secs(each * stressors * 4 + 1800);
    let answer = guest::run(&holm, Name::Debian, &options, &command, patience)?;
    print!("{}", answer.output);
    eprintln!(
        "xtask: boot {:.1?}, stress {:.1?}",
        answer.boot, answer.command
    );
    Ok(ExitCode::from(answer.status))
}

/// Each stressor by itself, then the kernel's own opinion.
fn command(each: u64) -> String {
    let stressors: String = STRESSORS
        .chars()
        .map(|c| if c == ',' { ' ' } else { c })
        .collect();
    format!(
        "cd /var/tmp\n\
         dmesg --clear\n\
         failed=\n\
         for s in {stressors}; do\n\
           stress-ng --$s 2 --timeout {each}s --verify >/run/stress 2>&1\n\
           status=$?\n\
           case $status in\n\
             0) echo \"ok   $s\" ;;\n\
             4) echo \"n/a  $s: $(tail -n 1 /run/stress)\" ;;\n\
             *) echo \"FAIL $s ($status)\"; cat /run/stress; failed=\"$failed $s\" ;;\n\
           esac\n\
         done\n\
         if dmesg | grep -E 'BUG|WARNING|Oops|lockup|rcu.*stall|general protection|hung task'; then\n\
           failed=\"$failed kernel\"\n\
         fi\n\
         [ -z \"$failed\" ] || {{ echo \"failed:$failed\"; exit 1; }}\n"
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_names_every_stressor_once() {
        let command = super::command(5);
        let list = command
            .split("for s in ")
            .nth(1)
            .unwrap()
            .split(';')
            .next()
            .unwrap();
        let mut names: Vec<&str> = list.split(' ').collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(count > 50);
    }
}
