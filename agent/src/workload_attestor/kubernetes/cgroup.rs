//! Which pod and which container a process is in, by its cgroups: pure functions of the text of `/proc/<pid>/cgroup`.
//!
//! The kernel writes that file. A process changes what it says only by moving, for which it needs the right to write to the target
//! cgroup; but *below* a cgroup that is its own, a service, a user's session or a container may make others with any names. So a
//! path is read from the root, and only through directories that the kubelet, a runtime or the machine's own engine makes: the
//! first pod that it comes to counts, with the container right below it. Anything further down is the workload's and is not looked
//! at; a pod's name behind any other directory is refused.
//!
//! An agent with a cgroup namespace of its own sees paths that begin with `..`, one for each step up from its own cgroup. What it can
//! see of them is read by the same rules; where the pod's part is cut off (a container of the agent's own pod) the container
//! alone is known.
//!
//! `/proc/<pid>/mountinfo` is not read. It could only add something where the cgroups name no container, and there whoever
//! has a mount namespace can make it say anything.

/// Where a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<'a> {
    /// The pod's UID as the kubelet writes it; none where the path does not show it.
    pub uid: Option<String>,
    /// The container's ID: 64 hexadecimal digits.
    pub id: &'a str,
}

/// What is wrong with the place of a process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// Two hierarchies say different things.
    #[error("the cgroups name more than one pod or container")]
    Ambiguous,
    /// A pod's name in a place that is not the kubelet's.
    #[error(
        "the cgroup {0:?} names a pod where this node's kubelet makes none; if it does, put what stands before kubepods \
         into workload_attestor.k8s.cgroup_roots"
    )]
    Elsewhere(String),
}

/// The pod and container that the cgroups name, if any. Pods are looked for at the root and below each of `roots`.
///
/// # Errors
/// [`LocateError`]: what names a pod does not say which.
pub fn locate<'a>(text: &'a str, roots: &[String]) -> Result<Option<Located<'a>>, LocateError> {
    let mut found: Option<Located<'a>> = None;
    for line in text.lines() {
        // `number:controllers:path`, where the path may hold colons.
        let mut parts = line.splitn(3, ':').skip(2);
        let Some(path) = parts.next() else { continue };
        let Some(here) = in_path(path, roots)? else { continue };
        match &mut found {
            None => found = Some(here),
            Some(known) => {
                let other_pod = known.uid.is_some() && here.uid.is_some() && known.uid != here.uid;
                if known.id != here.id || other_pod {
                    return Err(LocateError::Ambiguous);
                }
                known.uid = known.uid.take().or(here.uid);
            }
        }
    }
    Ok(found)
}

fn in_path<'a>(path: &'a str, roots: &[String]) -> Result<Option<Located<'a>>, LocateError> {
    let below = |root: &String| path.strip_prefix(root.as_str()).filter(|rest| rest.starts_with('/'));
    let rest = roots.iter().filter_map(below).min_by_key(|rest| rest.len()).unwrap_or(path);
    let mut segments = rest.split('/').skip(1);
    let mut relative = false;
    let mut first = true;
    while let Some(segment) = segments.next() {
        if let Some((uid, inline)) = pod(segment) {
            // A process that is in a pod and in none of its containers is none of a workload's.
            let id = inline.or_else(|| segments.next().and_then(container));
            return Ok(id.map(|id| Located { uid: Some(uid), id }));
        }
        if segment == ".." && (first || relative) {
            relative = true;
        } else if let Some(id) = container(segment).filter(|_| relative) {
            return Ok(Some(Located { uid: None, id }));
        } else if !is_above_pods(segment) {
            return match segments.any(|segment| pod(segment).is_some()) {
                true => Err(LocateError::Elsewhere(path.chars().take(256).collect())),
                false => Ok(None),
            };
        }
        first = false;
    }
    Ok(None)
}

/// Where the machine itself is a container of another one, as a node of kind is: the path of that container, from the agent's own
/// cgroups.
#[must_use]
pub fn node_roots(own: &str) -> Vec<String> {
    let mut roots: Vec<String> =
        own.lines().filter_map(|line| node_root(line.splitn(3, ':').nth(2)?)).map(str::to_owned).collect();
    roots.sort_unstable();
    roots.dedup();
    roots
}

fn node_root(path: &str) -> Option<&str> {
    let mut end = 0;
    for (at, segment) in path.strip_prefix('/')?.split('/').take(2).enumerate() {
        end += segment.len() + 1;
        if container(segment).is_some() {
            let rest = &path[end..];
            let inner = rest.starts_with("/container/") || rest == "/container";
            return Some(if inner { &path[..end + "/container".len()] } else { &path[..end] });
        }
        if at > 0 || !matches!(segment, "docker" | "system.slice" | "machine.slice" | "libpod_parent") {
            return None;
        }
    }
    None
}

/// Directories between the root and the pods: of the kubelet with either cgroup driver, and of runtimes that were given a systemd
/// path and take it as it is.
fn is_above_pods(segment: &str) -> bool {
    let parts = segment.strip_suffix(".slice").unwrap_or(segment);
    parts.split('-').all(|part| LEVELS.contains(&part)) || RUNTIMES.contains(&segment)
}

const LEVELS: [&str; 5] = ["kubelet", "kubepods", "burstable", "besteffort", "guaranteed"];
const RUNTIMES: [&str; 8] = [
    "system.slice",
    "containerd.service",
    "crio.service",
    "docker.service",
    "k3s.service",
    "k3s-agent.service",
    "rke2-server.service",
    "rke2-agent.service",
];

/// The pod that a directory's name holds, and the container when it is there as well: `pod<uid>`, `kubepods-burstable-pod<uid>.slice` or
/// `kubepods-burstable-pod<uid>.slice:cri-containerd:<id>`.
fn pod(segment: &str) -> Option<(String, Option<&str>)> {
    let (name, inline) = match segment.split_once(".slice:") {
        Some((name, rest)) => (name, Some(rest.rsplit(':').next().filter(|id| is_id(id))?)),
        None => (segment.strip_suffix(".slice").unwrap_or(segment), None),
    };
    let mut name = name;
    while let Some((level, rest)) = name.split_once('-').filter(|(level, _)| LEVELS.contains(level)) {
        debug_assert!(!level.is_empty());
        name = rest;
    }
    uid(name.strip_prefix("pod")?).map(|uid| (uid, inline))
}

/// A UID in one of its forms: with hyphens, with the underscores that systemd needs in their place, or, of pods from files, 32
/// digits.
fn uid(text: &str) -> Option<String> {
    let digits = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() == 32 && digits(text) {
        return Some(text.to_owned());
    }
    let separator = if text.contains('_') { '_' } else { '-' };
    let lengths: Vec<usize> = text.split(separator).map(str::len).collect();
    let fits = lengths == [8, 4, 4, 4, 12] && text.split(separator).all(digits);
    fits.then(|| text.replace('_', "-"))
}

/// The container that a directory's name holds.
fn container(segment: &str) -> Option<&str> {
    let inner = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = PREFIXES.iter().find_map(|prefix| inner.strip_prefix(prefix)).unwrap_or(inner);
    is_id(id).then_some(id)
}

const PREFIXES: [&str; 4] = ["cri-containerd-", "crio-", "docker-", "libpod-"];

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const U: &str = "2c48913c-b29f-11e7-9350-020968147796";
    const V: &str = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    fn fill(text: &str) -> String {
        let escaped = |uid: &str| uid.replace('-', "_");
        text.replace("<A>", &"a".repeat(64))
            .replace("<B>", &"b".repeat(64))
            .replace("<N>", &"c".repeat(64))
            .replace("<u_>", &escaped(U))
            .replace("<u>", U)
            .replace("<v_>", &escaped(V))
            .replace("<v>", V)
            .replace("<s>", STATIC)
    }

    fn found(text: &str, roots: &[&str]) -> Result<Option<(Option<String>, char)>, LocateError> {
        let roots: Vec<String> = roots.iter().map(|root| fill(root)).collect();
        let text = fill(text);
        Ok(locate(&text, &roots)?.map(|found| (found.uid, found.id.chars().next().unwrap())))
    }

    #[test]
    fn the_places_of_kubelets_and_runtimes_are_known() {
        for text in [
            "0::/kubepods/burstable/pod<u>/<A>",
            "0::/kubepods/pod<u>/<A>",
            "0::/kubepods/besteffort/pod<u>/<A>/init.scope",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<u_>.slice/cri-containerd-<A>.scope",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<u_>.slice/crio-<A>.scope/container",
            "0::/kubepods.slice/kubepods-pod<u_>.slice/docker-<A>.scope",
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod<u_>.slice/cri-containerd-<A>.scope",
            "1:name=systemd:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<u>.slice/docker-<A>.scope",
            "0::/system.slice/containerd.service/kubepods-burstable-pod<u_>.slice:cri-containerd:<A>",
            "0::/kubepods-burstable-pod<u_>.slice:cri-containerd:<A>",
            "0::/../../pod<u>/<A>",
            "0::/../../../besteffort/pod<u>/<A>",
            "0::/../../kubepods-burstable-pod<u_>.slice/cri-containerd-<A>.scope",
            "4:memory:/\n3:pids:/kubepods/burstable/pod<u>/<A>\n1:name=systemd:/kubepods/burstable/pod<u>/<A>\n0::/",
            "2:pids:/../<A>\n1:name=systemd:/../../pod<u>/<A>",
        ] {
            assert_eq!(found(text, &[]), Ok(Some((Some(U.to_owned()), 'a'))), "{text}");
        }
        let of_a_file =
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<s>.slice/crio-<A>.scope";
        assert_eq!(found(of_a_file, &[]), Ok(Some((Some(STATIC.to_owned()), 'a'))));
        for text in ["0::/../crio-<A>.scope", "0::/../<A>", "0::/../cri-containerd-<A>.scope/x"] {
            assert_eq!(found(text, &[]), Ok(Some((None, 'a'))), "{text}");
        }
    }

    #[test]
    fn nodes_that_are_containers_are_known_from_the_agents_own_place() {
        for (own, root) in [
            ("1:pids:/docker/<N>/kubepods/besteffort/pod<v>/<B>\n0::/docker/<N>", "/docker/<N>"),
            (
                "0::/system.slice/docker-<N>.scope/kubelet.slice/kubelet-kubepods.slice",
                "/system.slice/docker-<N>.scope",
            ),
            (
                "0::/machine.slice/libpod-<N>.scope/container/system.slice",
                "/machine.slice/libpod-<N>.scope/container",
            ),
        ] {
            let roots = node_roots(&fill(own));
            assert_eq!(roots, [fill(root)]);
            let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
            let inside = format!("0::{root}/kubelet/kubepods/burstable/pod<u>/<A>");
            assert_eq!(found(&inside, &roots), Ok(Some((Some(U.to_owned()), 'a'))), "{inside}");
            assert!(matches!(found(&inside, &[]), Err(LocateError::Elsewhere(_))));
        }
        for own in [
            "0::/",
            "0::/kubepods/burstable/pod<u>/<A>",
            "0::/../x",
            "0::/system.slice/x.service",
            "junk",
            "",
        ] {
            assert_eq!(node_roots(&fill(own)), Vec::<String>::new(), "{own}");
        }
        let own = "0::/user.slice/k3s/kubepods/pod<u>/<A>";
        assert_eq!(found(own, &["/user.slice/k3s"]), Ok(Some((Some(U.to_owned()), 'a'))));
    }

    #[test]
    fn names_that_a_workload_made_are_not_believed() {
        // Below its own container: it stays what it is.
        for text in [
            "0::/kubepods/burstable/pod<u>/<A>/kubepods/burstable/pod<v>/<B>",
            "0::/kubepods.slice/kubepods-pod<u_>.slice/cri-containerd-<A>.scope/pod<v>/<B>",
            "0::/../../pod<u>/<A>/../../pod<v>/<B>",
        ] {
            assert_eq!(found(text, &[]), Ok(Some((Some(U.to_owned()), 'a'))), "{text}");
        }
        assert_eq!(found("0::/../<A>/kubepods/pod<v>/<B>", &[]), Ok(Some((None, 'a'))));
        // Below something else of its own.
        for text in [
            "0::/user.slice/user-1000.slice/user@1000.service/kubepods/burstable/pod<u>/<A>",
            "0::/../../../user.slice/user-1000.slice/user@1000.service/app.slice/kubepods-pod<u_>.slice/cri-containerd-<A>.scope",
            "0::/system.slice/web.service/kubepods/pod<u>/<A>",
            "0::/docker/<N>/kubepods/pod<u>/<A>",
            "0::/kubepods/x/pod<u>/<A>",
            "0::/kubepods/../pod<u>/<A>",
            "1:pids:/kubepods/pod<u>/<A>\n0::/user.slice/pod<u>/<A>",
        ] {
            assert!(matches!(found(text, &[]), Err(LocateError::Elsewhere(_))), "{text}");
        }
    }

    #[test]
    fn contradictions_are_refused_and_the_rest_is_nobody() {
        for text in [
            "2:pids:/kubepods/pod<u>/<A>\n1:cpu:/kubepods/pod<v>/<A>",
            "2:pids:/kubepods/pod<u>/<A>\n1:cpu:/kubepods/pod<u>/<B>",
            "2:pids:/../<A>\n1:cpu:/../../pod<u>/<B>",
        ] {
            assert_eq!(found(text, &[]), Err(LocateError::Ambiguous), "{text}");
        }
        for text in [
            "",
            "0::/",
            "0::/docker/<A>",
            "0::/system.slice/docker-<A>.scope",
            "0::/user.slice/user-1000.slice/session-3.scope",
            "0::/kubepods/burstable/pod<u>",
            "0::/kubepods/burstable/pod<u>/crio-conmon-<A>.scope",
            "0::/kubepods/burstable/podx/<A>",
            "0::/kubepods/pod2c48913c-b29f_11e7-9350-020968147796/<A>",
            "0::/../crio-conmon-<A>.scope",
            "no colons",
        ] {
            assert_eq!(found(text, &[]), Ok(None), "{text}");
        }
    }
}
