//! A disk on the command line: `FILE[,OPTION[=VALUE]…]`.

use disk::Format;
use machine::{Disk, Limit, OnError};

use crate::values::size;

/// Reads a disk.
///
/// # Errors
/// Says what is wrong and what there is.
pub fn parse(text: &str) -> Result<Disk, String> {
    let mut words = text.split(',');
    let file = words.next().unwrap_or_default();
    if file.is_empty() {
        return Err("a disk is FILE[,OPTION[=VALUE]…], as in data.img,readonly".into());
    }
    let mut disk = Disk::new(file);
    let (mut operations_burst, mut bytes_burst) = (None, None);
    for word in words {
        match word.split_once('=') {
            None if word == "readonly" => disk.read_only = true,
            Some(("serial", serial)) => disk.serial = Some(serial.to_owned()),
            Some(("format", format)) => disk.format = Some(Format::parse(format)?),
            Some(("name", name)) => disk.name = Some(name.to_owned()),
            Some(("block-size", bytes)) => {
                let bytes = size(bytes)?;
                disk.block_size = Some(u32::try_from(bytes).unwrap_or(u32::MAX));
            }
            Some(("iops", n)) => disk.limits.operations = Some(Limit::new(number(n)?)),
            Some(("bps", n)) => disk.limits.bytes = Some(Limit::new(size(n)?)),
            Some(("iops-burst", n)) => operations_burst = Some(number(n)?),
            Some(("bps-burst", n)) => bytes_burst = Some(size(n)?),
            Some(("on-error", "pause")) => disk.on_error = OnError::Pause,
            Some(("on-error", "report")) => disk.on_error = OnError::Report,
            _ => {
                return Err(format!(
                    "unknown disk option {word:?}: there are format=raw|qcow2, readonly, serial=S, name=N, \
                     block-size=512|4096, iops=N, iops-burst=N, bps=SIZE, bps-burst=SIZE and \
                     on-error=pause|report"
                ));
            }
        }
    }
    let bursts = [
        (&mut disk.limits.operations, operations_burst, "iops"),
        (&mut disk.limits.bytes, bytes_burst, "bps"),
    ];
    for (limit, burst, what) in bursts {
        match (limit, burst) {
            (Some(limit), Some(burst)) => limit.burst = burst,
            (None, Some(_)) => return Err(format!("{what}-burst= needs {what}=")),
            _ => {}
        }
    }
    disk.check().map_err(|e| e.to_string())?;
    Ok(disk)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a number of operations"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks() {
        let disk = parse("a.img,readonly,serial=X1,name=data,block-size=4K,format=raw").unwrap();
        let expected = Disk {
            read_only: true,
            format: Some(Format::Raw),
            serial: Some("X1".into()),
            name: Some("data".into()),
            block_size: Some(4096),
            ..Disk::new("a.img")
        };
        assert_eq!(disk, expected);
        let disk = parse("a,iops=500,bps=20M,bps-burst=1G,on-error=report").unwrap();
        let limits = (disk.limits.operations, disk.limits.bytes);
        let limit = |per_second, burst| Some(Limit { per_second, burst });
        assert_eq!(limits, (limit(500, 50), limit(20 << 20, 1 << 30)));
        assert_eq!(disk.on_error, OnError::Report);
        for bad in [
            "",
            ",readonly",
            "a,ro",
            "a,format=vmdk",
            "a,serial=",
            "a,serial=123456789012345678901",
            "a,name=",
            "a,name=a/b",
            "a,block-size=1024",
            "a,iops=0",
            "a,iops=many",
            "a,iops-burst=5",
            "a,bps=1M,bps-burst=0",
            "a,on-error=panic",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
