//! What workload attestors read about a process: messages of the D-Bus bus, `/proc/<pid>/cgroup`, answers of a container engine, what a
//! prolog of Slurm wrote.
//!
//! Laws: a message is exactly as long as it says, and its texts are whole; what a workload appends to its cgroup path does
//! not change which container it is in; what a container's creator wrote makes selectors of one line and of their own kind.

use bonafide_agent::workload_attestor::cgroup::locate;
use bonafide_agent::workload_attestor::dbus::{MAX_MESSAGE, Message};
use bonafide_agent::workload_attestor::docker::{parse_container, parse_image};
use bonafide_agent::workload_attestor::slurm::{Facts, locate as locate_step};

/// Whether the bytes are any of these and say something.
pub fn check(data: &[u8]) -> bool {
    message(data) | cgroups(data) | container(data) | image(data) | step(data) | job(data)
}

fn message(data: &[u8]) -> bool {
    let Ok(message) = Message::parse(data) else { return false };
    assert!(data.len() <= MAX_MESSAGE);
    assert_eq!(data.first_chunk().and_then(|prologue| Message::length(prologue).ok()), Some(data.len()));
    assert!(Message::parse(&data[..data.len() - 1]).is_err(), "a message that is cut off is read");
    let texts = [
        message.path,
        message.member,
        message.error_name,
        message.sender,
        message.first_text().ok(),
        message.text_variant().ok(),
    ];
    for text in texts.into_iter().flatten() {
        assert!(!text.contains('\0'));
    }
    true
}

fn cgroups(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(Some(found)) = locate(text, &[]) else { return false };
    assert!(found.id.len() == 64 && found.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert!(!found.places.is_empty());
    for (_, place) in &found.places {
        assert!(place.rsplit('/').next().is_some_and(|name| name.contains(found.id)));
    }
    if text.lines().count() == 1 {
        let line = text.lines().next().unwrap_or_default();
        let below = format!("{line}/user.slice/user-1.slice/docker-{}.scope", "0".repeat(64));
        assert_eq!(locate(&below, &[]).as_ref(), Ok(&Some(found)), "a name below a container counts");
    }
    true
}

fn step(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(Some(found)) = locate_step(text) else { return false };
    let (_, place) = found.place;
    assert!(place.starts_with("/system.slice/") || place.starts_with("/slurm"), "{place}");
    assert!(text.contains(&format!("{place}/step_{}", found.step)));
    if text.lines().count() == 1 {
        let line = text.lines().next().unwrap_or_default();
        let below = format!("{line}/system.slice/slurmstepd.scope/job_9/step_9");
        assert_eq!(locate_step(&below).as_ref(), Ok(&Some(found)), "a name below a step counts");
    }
    true
}

fn job(data: &[u8]) -> bool {
    let Ok(facts) = Facts::parse(data) else { return false };
    for text in [facts.user, facts.account, facts.partition].into_iter().flatten() {
        assert!(!text.contains([':', '"']) && !text.contains(char::is_control));
    }
    true
}

fn container(data: &[u8]) -> bool {
    let Ok(container) = parse_container(data) else { return false };
    assert!(container.first_process().is_none_or(|pid| pid > 0));
    for value in container.values() {
        assert!(!value.contains(char::is_control));
        assert!(["label:", "env:", "image_id:"].iter().any(|kind| value.starts_with(kind)), "{value}");
    }
    true
}

fn image(data: &[u8]) -> bool {
    let Ok(Some(value)) = parse_image(data) else { return false };
    assert_eq!(value.len(), "image_config_digest:sha256:".len() + 64);
    true
}
