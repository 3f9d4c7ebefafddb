//! Which container a process is in, by its cgroups (`cgroups(7)`): pure functions of the text of `/proc/<pid>/cgroup`.
//!
//! The kernel writes that file and a process cannot change what it says but by moving, for which it needs the right to
//! write to the target cgroup. But cgroups *below* a container or a user's session may be the workload's own, with
//! names that it chose. So the first part of the path that names a container counts, seen from the root, never a
//! later one; what lies in a user's slice belongs to that user's engine, whatever it is called; several containers at
//! once are refused. And since also a service may own cgroups, a name alone proves nothing: the place is compared with
//! that of the process that the engine started ([`Located`] is compared as a whole).
//!
//! `/proc/<pid>/mountinfo` is not looked at, for a workload with a mount namespace of its own can make it say anything.

/// Where a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<'a> {
    /// The container's ID: 64 hexadecimal digits.
    pub id: &'a str,
    /// Who runs it.
    pub engine: EngineKind,
    /// For each hierarchy that names the container: its controllers, and the path up to the name.
    pub places: Vec<(&'a str, &'a str)>,
}

/// Who runs a container, as far as the path tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// Docker, or what follows its naming.
    Docker,
    /// Podman as root.
    Podman,
    /// An engine of this user.
    User {
        /// The user.
        uid: u32,
        /// Whether it is Podman.
        podman: bool,
    },
}

/// The names contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cgroups name more than one container")]
pub struct Ambiguous;

/// The container that the cgroups name, if any. With `matchers`, the ID is where the first that fits a path says; without,
/// the usual names of Docker and Podman are looked for.
///
/// # Errors
/// Two hierarchies name different containers.
pub fn locate<'a>(text: &'a str, matchers: &[Matcher]) -> Result<Option<Located<'a>>, Ambiguous> {
    let mut found: Option<Located<'a>> = None;
    for line in text.lines() {
        // `number:controllers:path`, where the path may hold colons.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let Some((id, engine, place)) = container(path, matchers) else { continue };
        match &mut found {
            None => found = Some(Located { id, engine, places: vec![(controllers, place)] }),
            Some(found) if found.id == id && found.engine == engine => {
                found.places.push((controllers, place));
            }
            Some(_) => return Err(Ambiguous),
        }
    }
    Ok(found)
}

/// The ID in a path, whose it is, and the path up to it.
fn container<'a>(path: &'a str, matchers: &[Matcher]) -> Option<(&'a str, EngineKind, &'a str)> {
    let by_pattern = match matchers {
        [] => None,
        matchers => Some(matchers.iter().find_map(|matcher| matcher.matches(path))?),
    };
    let (mut user, mut podman) = (None, false);
    let mut end = 0;
    for segment in path.split('/') {
        let start = end;
        end = start + segment.len() + 1;
        let id = match by_pattern {
            Some(at) => (start == at).then_some(segment).filter(|id| is_id(id)),
            None => named(segment),
        };
        if let Some(id) = id {
            podman |= segment.starts_with("libpod-") || segment.contains(":libpod:");
            let engine = match user {
                Some(uid) => EngineKind::User { uid, podman },
                None if podman => EngineKind::Podman,
                None => EngineKind::Docker,
            };
            return Some((id, engine, &path[..end - 1]));
        }
        user = owner(segment).or(user);
        podman |= segment.starts_with("libpod");
    }
    None
}

/// The user whose slice this is.
fn owner(segment: &str) -> Option<u32> {
    let slice = segment.strip_prefix("user-").and_then(|rest| rest.strip_suffix(".slice"));
    let manager = segment.strip_prefix("user@").and_then(|rest| rest.strip_suffix(".service"));
    slice.or(manager)?.parse().ok()
}

/// The ID that a directory's name holds, as Docker (both cgroup drivers) and Podman write it. The names with colons are
/// those of a systemd path that was given to the other driver.
fn named(segment: &str) -> Option<&str> {
    if let Some((_, id)) = segment.rsplit_once(":docker:").or_else(|| segment.rsplit_once(":libpod:")) {
        return is_id(id).then_some(id);
    }
    let inner = segment.strip_suffix(".scope").unwrap_or(segment);
    let prefixes = ["docker-", "libpod-payload-", "libpod-"];
    let id = prefixes.iter().find_map(|prefix| inner.strip_prefix(prefix)).unwrap_or(segment);
    is_id(id).then_some(id)
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A pattern for paths: parts between slashes that are equal, `*` for any one part, and once `<id>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Any,
    Id,
}

/// Why a pattern is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MatcherError {
    /// It would not say where the ID is.
    #[error("must hold <id> exactly once, as a whole part between slashes")]
    Id,
}

impl std::str::FromStr for Matcher {
    type Err = MatcherError;

    fn from_str(text: &str) -> Result<Self, MatcherError> {
        let part = |part: &str| match part {
            "*" => Part::Any,
            "<id>" => Part::Id,
            part => Part::Text(part.to_owned()),
        };
        let parts: Vec<Part> = text.split('/').map(part).collect();
        let ids = parts.iter().filter(|part| **part == Part::Id).count();
        if ids == 1 { Ok(Self(parts)) } else { Err(MatcherError::Id) }
    }
}

impl Matcher {
    /// Where in the path the ID starts.
    fn matches(&self, path: &str) -> Option<usize> {
        let (mut at, mut found) = (0, None);
        let mut segments = path.split('/');
        for part in &self.0 {
            let segment = segments.next()?;
            match part {
                Part::Text(text) if text != segment => return None,
                Part::Text(_) | Part::Any => {}
                Part::Id => found = Some(at),
            }
            at += segment.len() + 1;
        }
        if segments.next().is_some() { None } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn fill(text: &str) -> String {
        text.replace("<A>", A).replace("<B>", B)
    }

    fn engine(text: &str, matchers: &[&str]) -> Option<(String, EngineKind, usize)> {
        let matchers: Vec<Matcher> = matchers.iter().map(|text| text.parse().unwrap()).collect();
        let text = fill(text);
        locate(&text, &matchers).unwrap().map(|found| (found.id.to_owned(), found.engine, found.places.len()))
    }

    #[test]
    fn the_usual_places_are_known() {
        use EngineKind::{Docker, Podman};
        for (text, kind, places) in [
            ("0::/system.slice/docker-<A>.scope", Docker, 1),
            ("0::/docker/<A>", Docker, 1),
            ("0::/docker/<A>/init.scope", Docker, 1),
            ("0::/../docker-<A>.scope", Docker, 1),
            ("0::/../<A>", Docker, 1),
            ("0::/../../docker/<A>", Docker, 1),
            (
                "12:pids:/docker/<A>\n11:cpu,cpuacct:/docker/<A>\n1:name=systemd:/docker/<A>\n0::/system.slice/x",
                Docker,
                3,
            ),
            ("0::/kubepods.slice/kubepods-pod1.slice/docker-<A>.scope", Docker, 1),
            ("0::/machine.slice/libpod-<A>.scope", Podman, 1),
            ("0::/machine.slice/libpod-<A>.scope/container", Podman, 1),
            ("0::/libpod_parent/libpod-<A>", Podman, 1),
            ("0::/system.slice:docker:<A>", Docker, 1),
            ("0::/machine.slice:libpod:<A>", Podman, 1),
            ("0::/system.slice/x.service/libpod-payload-<A>", Podman, 1),
            ("4:memory:/libpod_parent/<A>", Podman, 1),
        ] {
            assert_eq!(engine(text, &[]), Some((A.to_owned(), kind, places)), "{text}");
        }
    }

    #[test]
    fn what_is_no_container_has_no_id() {
        for text in [
            "",
            "0::/",
            "0::/user.slice/user-1000.slice/session-3.scope",
            "0::/system.slice/cron.service",
            "0::/machine.slice/libpod-conmon-<A>.scope",
            "0::/system.slice/docker-<A>x.scope",
            "0::/system.slice/docker-<A>.service",
            "0::/docker/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "0::/docker/abc123",
            "no colons at all",
            "0:/docker/<A>",
        ] {
            assert_eq!(engine(text, &[]), None, "{text}");
        }
    }

    #[test]
    fn names_below_a_container_are_the_workloads_and_do_not_count() {
        for text in [
            "0::/docker/<A>/docker/<B>",
            "0::/docker/<A>/<B>",
            "0::/system.slice/docker-<A>.scope/system.slice/docker-<B>.scope",
            "0::/docker/<A>/user.slice/user-0.slice/docker-<B>.scope",
            "0::/docker/<A>/kubelet/kubepods/pod1/<B>",
        ] {
            assert_eq!(engine(text, &[]), Some((A.to_owned(), EngineKind::Docker, 1)), "{text}");
        }
    }

    #[test]
    fn names_in_a_users_slice_are_of_that_users_engine() {
        for (text, uid, podman) in [
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/docker-<B>.scope", 1000, false),
            ("0::/../../user.slice/user-1000.slice/user@1000.service/<B>", 1000, false),
            ("0::/user.slice/user-7.slice/user@7.service/user.slice/libpod-<B>.scope/container", 7, true),
            ("1:name=systemd:/user@8.service/docker/<B>", 8, false),
        ] {
            let kind = EngineKind::User { uid, podman };
            assert_eq!(engine(text, &[]), Some((B.to_owned(), kind, 1)), "{text}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for text in [
            "2:cpu:/docker/<A>\n1:name=systemd:/docker/<B>",
            "2:cpu:/docker/<A>\n1:name=systemd:/user.slice/user-1.slice/docker-<A>.scope",
        ] {
            assert_eq!(locate(&fill(text), &[]), Err(Ambiguous), "{text}");
        }
    }

    #[test]
    fn places_tell_a_forged_path_from_the_real_one() {
        let real = fill("0::/system.slice/docker-<A>.scope/init.scope");
        let same = fill("0::/system.slice/docker-<A>.scope/work/deeper");
        let forged = fill("0::/system.slice/own.service/docker-<A>.scope");
        let place = |text| locate(text, &[]).unwrap().unwrap();
        assert_eq!(place(&real), place(&same));
        assert_ne!(place(&real), place(&forged));
    }

    #[test]
    fn patterns_say_where_the_id_is() {
        let found = |text: &str, pattern: &str| engine(text, &[pattern]).map(|(id, ..)| id);
        assert_eq!(found("0::/my.slice/x/<A>/y", "/my.slice/*/<id>/*"), Some(A.to_owned()));
        assert_eq!(found("0::/my.slice/<B>/<A>", "/my.slice/*/<id>"), Some(A.to_owned()));
        assert_eq!(found("0::/docker/<A>", "/my.slice/<id>"), None);
        assert_eq!(found("0::/docker/<A>/x", "/docker/<id>"), None);
        assert_eq!(
            found("0::/docker/short", "/docker/<id>"),
            None,
            "the engine would take part of an ID or a name"
        );
        for pattern in ["", "/docker/*", "/<id>/<id>", "/docker/x<id>"] {
            assert_eq!(pattern.parse::<Matcher>(), Err(MatcherError::Id), "{pattern}");
        }
    }
}
