//! Imports from servers: whole, interrupted, wrong, hostile.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use images::{ImagesError, ImportOptions, Library, Location, Stage};
use sha2::{Digest as _, Sha256, Sha512};

/// A server of one file that ends connections early as often as it is told.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
    contents: Arc<Mutex<(Vec<u8>, String)>>,
    cut: Arc<AtomicUsize>,
}

impl Server {
    fn start(contents: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            requests: Arc::default(),
            contents: Arc::new(Mutex::new((contents.to_vec(), "\"one\"".into()))),
            cut: Arc::default(),
        };
        let (requests, contents) = (server.requests.clone(), server.contents.clone());
        let cut = server.cut.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is what some tests are about.
                let _ = answer(stream.unwrap(), &requests, &contents, &cut);
            }
        });
        server
    }

    fn location(&self, path: &str) -> Location {
        Location {
            place: format!("{}{path}", self.address),
            checksum: None,
            compression: None,
            most: 1 << 30,
        }
    }
}

fn answer(
    stream: TcpStream,
    requests: &Mutex<Vec<String>>,
    contents: &Mutex<(Vec<u8>, String)>,
    cut: &AtomicUsize,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut request = String::new();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        request.push_str(&line.to_ascii_lowercase());
        request.push('\n');
    }
    requests.lock().unwrap().push(request.clone());
    let mut stream = stream;
    if request.contains(" /missing") {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
    }
    let (bytes, tag) = contents.lock().unwrap().clone();
    let from = request
        .lines()
        .find_map(|line| {
            line.strip_prefix("range: bytes=")?
                .strip_suffix('-')?
                .parse::<usize>()
                .ok()
        })
        .filter(|_| request.contains(&format!("if-range: {tag}")))
        .unwrap_or(0);
    let all = bytes.len();
    let head = match from {
        0 => "HTTP/1.1 200 OK".to_owned(),
        _ => format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{all}",
            all - 1
        ),
    };
    write!(
        stream,
        "{head}\r\ncontent-length: {}\r\netag: {tag}\r\nconnection: close\r\n\r\n",
        all - from
    )?;
    let rest = &bytes[from..];
    let enough = match cut.load(Ordering::SeqCst) {
        0 => rest.len(),
        _ => {
            cut.fetch_sub(1, Ordering::SeqCst);
            rest.len() / 2
        }
    };
    stream.write_all(&rest[..enough])
}

struct Home {
    directory: tempfile::TempDir,
    library: Library,
}

fn home() -> Home {
    let directory = tempfile::tempdir().unwrap();
    let library = Library::open(&directory.path().join("images")).unwrap();
    Home { directory, library }
}

fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    for (at, byte) in bytes.iter_mut().enumerate().take(2 << 20) {
        *byte = (at * at % 253) as u8;
    }
    bytes
}

fn bring(home: &Home, from: &Location) -> Result<(PathBuf, Vec<Stage>), ImagesError> {
    let mut stages = Vec::new();
    let heard = &mut |stage, done, all| {
        assert!(done <= all);
        if stages.last() != Some(&stage) {
            stages.push(stage);
        }
    };
    let digest = home.library.bring(from, &ImportOptions::default(), heard)?;
    Ok((home.library.use_image(&digest)?, stages))
}

fn left(home: &Home) -> usize {
    fs::read_dir(home.library.directory().join("downloads"))
        .unwrap()
        .count()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn a_download_that_breaks_goes_on_where_it_was() {
    let (home, contents) = (home(), disk());
    let server = Server::start(&contents);
    server.cut.store(3, Ordering::SeqCst);
    let mut from = server.location("/disk.img");
    from.checksum = Some(
        format!("sha256:{}", hex(&Sha256::digest(&contents)))
            .parse()
            .unwrap(),
    );
    let (file, stages) = bring(&home, &from).unwrap();
    assert!(fs::read(file).unwrap() == contents);
    assert_eq!(
        stages,
        [Stage::Downloading, Stage::Checking, Stage::Copying]
    );
    let requests = server.requests.lock().unwrap();
    assert_eq!(requests.len(), 4);
    let at = 3 << 19;
    assert!(
        requests[1].contains(&format!("range: bytes={at}-")),
        "{}",
        requests[1]
    );
    assert_eq!(left(&home), 0);
}

#[test]
fn what_another_process_left_is_gone_on_with_or_begun_anew() {
    let (home, contents) = (home(), disk());
    let server = Server::start(&contents);
    // The process that began it gives up.
    server.cut.store(usize::MAX, Ordering::SeqCst);
    let from = server.location("/disk.img?token=secret");
    let failed = bring(
        &home,
        &Location {
            most: 1 << 30,
            ..from.clone()
        },
    );
    // Each try brings half of the rest, so it ends well or is nearly there.
    if let Err(error) = failed {
        assert!(error.to_string().contains("is kept"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    server.cut.store(0, Ordering::SeqCst);
    let other: Vec<u8> = contents.iter().rev().copied().collect();
    *server.contents.lock().unwrap() = (other.clone(), "\"two\"".into());
    let (file, _) = bring(&home, &from).unwrap();
    assert!(fs::read(file).unwrap() == other, "two files were mixed");
    let (images, _) = home.library.list().unwrap();
    assert!(
        images.iter().all(|i| !i.manifest.source.contains("secret")),
        "{images:?}"
    );
    assert_eq!(left(&home), 0);
}

#[test]
fn what_is_not_what_it_should_be_is_not_imported() {
    let (home, contents) = (home(), disk());
    let server = Server::start(&contents);
    let mut from = server.location("/disk.img");
    from.checksum = Some(format!("sha512:{}", "0".repeat(128)).parse().unwrap());
    let error = bring(&home, &from).unwrap_err();
    assert!(matches!(error, ImagesError::Checksum { .. }), "{error}");
    let right = hex(&Sha512::digest(&contents));
    assert!(error.to_string().contains(&right), "{error}");
    from.checksum = Some(format!("sha512:{right}").parse().unwrap());
    from.most = 1 << 20;
    let error = bring(&home, &from).unwrap_err().to_string();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    let error = bring(&home, &server.location("/missing"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("404") && error.contains("check the address"),
        "{error}"
    );
    for bad in ["ftp://host/x", "file://host/x", "http://", "/no/such/file"] {
        let location = Location {
            place: bad.into(),
            ..from.clone()
        };
        assert!(bring(&home, &location).is_err(), "{bad}");
    }
    assert!(home.library.digests().unwrap().is_empty());
    for bad in ["sha256:00", "md5:0123", "", "sha256:g"] {
        assert!(bad.parse::<images::Checksum>().is_err());
    }
}

#[test]
fn packed_files_are_unpacked_on_the_way() {
    let (home, contents) = (home(), disk());
    let raw = home.directory.path().join("disk.img");
    fs::write(&raw, &contents).unwrap();
    let status = std::process::Command::new("xz")
        .arg("-0")
        .arg(&raw)
        .status();
    assert!(status.expect("xz is needed by this test").success());
    let packed = home.directory.path().join("disk.img.xz");
    let server = Server::start(&fs::read(&packed).unwrap());
    for place in [
        packed.to_str().unwrap().to_owned(),
        format!("file://{}", packed.display()),
        server.location("/a/disk.img.xz?x=1").place,
    ] {
        let location = Location {
            place,
            ..server.location("")
        };
        let (file, stages) = bring(&home, &location).unwrap();
        assert!(fs::read(file).unwrap() == contents);
        assert!(stages.contains(&Stage::Unpacking));
    }
    assert_eq!(home.library.digests().unwrap().len(), 1);
    assert_eq!(left(&home), 0);
}
