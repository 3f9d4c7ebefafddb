//! Power cuts: an ext4 file system on a loop device is shut down under the writer, so that what was not forced to the
//! device is gone.
//!
//! The writer is stopped first and its acknowledgements read, so that each of them precedes the cut. The shutdown ioctl
//! with NOLOGFLUSH (what fstests' `godown` does) drops the page cache and the uncommitted journal. It is kinder than a
//! drive with a volatile cache, which no file system on one machine can model.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use bonafide_server::store::DriverKind;

use super::kill::Random;
use super::workload::{Ledger, Writer};
use super::{is_root, setting, skip};

const SHUTDOWN: &str = "import fcntl, os, struct, sys\n\
                        fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_with_sled() {
    cut_power(DriverKind::Sled);
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_with_redb() {
    cut_power(DriverKind::Redb);
}

fn cut_power(driver: DriverKind) {
    let name = format!("power cuts, {driver}");
    if !is_root() {
        return skip(&name, "needs root");
    }
    if run("python3", &["-c", ""]).is_err() {
        return skip(&name, "needs python3");
    }
    let folder = tempfile::tempdir().unwrap();
    let device = match LoopDevice::new(folder.path()) {
        Ok(device) => device,
        Err(why) => return skip(&name, &why),
    };
    let cuts = setting("BONAFIDE_TEST_POWER_CUTS", 3);
    let place = folder.path().join("mounted");
    std::fs::create_dir(&place).unwrap();
    let mut ledger = Ledger::default();
    let mut random = Random(0x5851_f42d_4c95_7f2d);
    for round in 0..cuts {
        let mounted = Mount::new(&device.name, &place);
        let mut writer = Writer::start(driver, round, &place);
        writer.listen(&mut ledger, Instant::now() + Duration::from_secs(60), true);
        writer.listen(&mut ledger, Instant::now() + random.millis(400), false);
        writer.freeze();
        writer.drain(&mut ledger);
        run("python3", &["-c", SHUTDOWN, text(&place)]).expect("the shutdown ioctl");
        writer.kill(&mut ledger);
        drop(mounted);

        let _mounted = Mount::new(&device.name, &place);
        ledger.check(driver, &place, &format!("{driver}, power cut {round}"));
    }
    let acks = ledger.acks;
    // And while a store is made.
    for round in 0..cuts {
        let new = place.join(format!("new-{round}"));
        let mut ledger = Ledger::default();
        let mounted = Mount::new(&device.name, &place);
        std::fs::create_dir(&new).unwrap();
        rustix::fs::syncfs(std::fs::File::open(&place).unwrap()).unwrap();
        let mut writer = Writer::start(driver, round, &new);
        let start = Instant::now();
        while std::fs::read_dir(&new).unwrap().next().is_none() {
            assert!(start.elapsed() < Duration::from_secs(60), "the store must be made");
        }
        writer.listen(&mut ledger, Instant::now() + random.millis(15), false);
        writer.freeze();
        writer.drain(&mut ledger);
        run("python3", &["-c", SHUTDOWN, text(&place)]).expect("the shutdown ioctl");
        writer.kill(&mut ledger);
        drop(mounted);

        let _mounted = Mount::new(&device.name, &place);
        ledger.check(driver, &new, &format!("{driver}, power cut {round} of a new store"));
        std::fs::remove_dir_all(&new).unwrap();
    }
    eprintln!(
        "{driver}: {cuts} power cuts, {acks} acknowledged writes, none lost; {cuts} while a store was made"
    );
    assert!(acks > cuts);
}

/// An empty ext4 file system on a loop device; detached when dropped.
struct LoopDevice {
    name: String,
}

impl LoopDevice {
    fn new(folder: &Path) -> Result<Self, String> {
        let image = folder.join("image");
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(512 << 20))
            .map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", text(&image)])?;
        let output = run("losetup", &["--find", "--show", text(&image)])?;
        Ok(Self { name: String::from_utf8_lossy(&output.stdout).trim().to_owned() })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = run("losetup", &["--detach", &self.name]) {
            eprintln!("{} is left behind: {error}", self.name);
        }
    }
}

struct Mount {
    place: PathBuf,
}

impl Mount {
    fn new(device: &str, place: &Path) -> Self {
        // Mounting a device whose file system is still alive gives that same, shut down, file system once more. It
        // lives on while another mount namespace holds it, as a test that makes namespaces does for a moment.
        let alive = Path::new("/sys/fs/ext4").join(device.trim_start_matches("/dev/"));
        let start = Instant::now();
        while alive.exists() {
            assert!(start.elapsed() < Duration::from_secs(60), "the file system before the cut must be gone");
            std::thread::sleep(Duration::from_millis(5));
        }
        run("mount", &["-t", "ext4", device, text(place)]).expect("mounting");
        Self { place: place.to_owned() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // In the middle of a panic something may still hold a file: then the mount goes as soon as that does.
        if run("umount", &[text(&self.place)]).is_err()
            && let Err(error) = run("umount", &["--lazy", text(&self.place)])
        {
            eprintln!("{} is left mounted: {error}", self.place.display());
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<Output, String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
