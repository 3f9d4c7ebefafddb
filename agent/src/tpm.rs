//! A TPM 2.0, spoken to directly: the few commands that attestation needs, over the kernel's device or a Unix socket.
//!
//! Numbers are those of the TPM 2.0 Library specification, parts 2 and 3. The path to the TPM is taken to be the machine's own, so
//! passwords and answers are not encrypted on it. Each call waits for the TPM: call it off the asynchronous threads. How long a
//! command may take is bounded by the kernel's driver for devices, and by [`ANSWER`] for sockets.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bonafide_pki::tpm::{Hash, Public, Scheme, Signature};
use zeroize::Zeroizing;

/// Why a TPM does not do what it is asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// It cannot be opened.
    #[error("cannot open the TPM at {}", path.display())]
    Open {
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// None was found, or several.
    #[error("{0}: set node_attestor.tpm_devid.tpm_device_path")]
    NotFound(&'static str),
    /// The command cannot be sent, or its answer not received.
    #[error("the TPM does not answer to {command}")]
    Io {
        /// The command.
        command: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The answer cannot be read.
    #[error("the TPM's answer to {command} is malformed: {problem}")]
    Malformed {
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It refuses.
    #[error("the TPM refuses {command}: {} (0x{code:03x})", meaning(*code))]
    Refused {
        /// The command.
        command: &'static str,
        /// The response code (part 2, 6.6).
        code: u32,
    },
}

/// The way to a TPM: one command, one answer.
pub trait Transport: Send {
    /// Sends a command and waits for the answer.
    ///
    /// # Errors
    /// The TPM is gone or silent.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;
}

/// A command of the TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    code: u32,
    name: &'static str,
    gives_handle: bool,
}

impl Command {
    /// A command with this code; whether its answer begins with a handle.
    pub const fn new(code: u32, name: &'static str, gives_handle: bool) -> Self {
        Self { code, name, gives_handle }
    }
}

/// What authorizes the use of a handle.
#[derive(Clone, Copy)]
pub enum Auth<'a> {
    /// Its password.
    Password(&'a [u8]),
    /// A policy session, which ends with the command.
    Policy(Handle),
}

/// Something that the TPM holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(pub u32);

impl Handle {
    /// The owner's hierarchy.
    pub const OWNER: Self = Self(0x4000_0001);
    /// The endorsement hierarchy.
    pub const ENDORSEMENT: Self = Self(0x4000_000b);
    /// The platform's hierarchy.
    pub const PLATFORM: Self = Self(0x4000_000c);
    const NULL: Self = Self(0x4000_0007);
    const PASSWORD: u32 = 0x4000_0009;
}

/// What the TPM answers.
#[derive(Debug)]
pub struct Answer {
    command: &'static str,
    handle: Option<Handle>,
    parameters: Zeroizing<Vec<u8>>,
    at: usize,
}

impl Answer {
    fn handle(&self) -> Result<Handle, TpmError> {
        self.handle.ok_or_else(|| self.malformed("it gives no handle"))
    }

    /// What was not read yet.
    pub fn rest(&self) -> &[u8] {
        &self.parameters[self.at..]
    }

    fn sized(&mut self) -> Result<Vec<u8>, TpmError> {
        let taken = match self.rest() {
            [high, low, rest @ ..] => rest.get(..usize::from(u16::from_be_bytes([*high, *low]))),
            _ => None,
        };
        let taken = taken.map(<[u8]>::to_vec).ok_or_else(|| self.malformed("it is cut short"))?;
        self.at += 2 + taken.len();
        Ok(taken)
    }

    fn malformed(&self, problem: &'static str) -> TpmError {
        TpmError::Malformed { command: self.command, problem }
    }
}

/// A TPM.
pub struct Tpm {
    transport: Box<dyn Transport>,
}

impl Tpm {
    /// Opens the TPM at a path: a device of the kernel, or a Unix socket that takes plain commands.
    ///
    /// # Errors
    /// [`TpmError::Open`].
    pub fn open(path: &Path) -> Result<Self, TpmError> {
        let open = || -> io::Result<Box<dyn Transport>> {
            let kind = std::fs::metadata(path)?.file_type();
            if kind.is_socket() {
                return Ok(Box::new(Socket(path.to_owned())));
            }
            if !kind.is_char_device() {
                return Err(io::Error::other("it is neither a device nor a socket"));
            }
            Ok(Box::new(Device(OpenOptions::new().read(true).write(true).open(path)?)))
        };
        let transport = open().map_err(|source| TpmError::Open { path: path.to_owned(), source })?;
        Ok(Self { transport })
    }

    /// Over any other way.
    pub fn over(transport: Box<dyn Transport>) -> Self {
        Self { transport }
    }

    /// Runs a command: handles, what authorizes the first of them, parameters.
    ///
    /// # Errors
    /// [`TpmError`]. A TPM that is busy is asked again, for about ten seconds.
    pub fn run(
        &mut self,
        command: Command,
        handles: &[Handle],
        auths: &[Auth<'_>],
        parameters: &[u8],
    ) -> Result<Answer, TpmError> {
        let request = request(command, handles, auths, parameters);
        let io = |source| TpmError::Io { command: command.name, source };
        let mut pause = Duration::from_millis(20);
        for _ in 0..BUSY_TRIES {
            let response = Zeroizing::new(self.transport.exchange(&request).map_err(io)?);
            match answer(command, &response, !auths.is_empty()) {
                Err(TpmError::Refused { code: RC_YIELDED | RC_TESTING | RC_RETRY, .. }) => {
                    thread::sleep(pause);
                    pause *= 2;
                }
                outcome => return outcome,
            }
        }
        Err(TpmError::Refused { command: command.name, code: RC_RETRY })
    }

    /// Makes a key of a hierarchy's seed: the same one from the same template.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn create_primary(
        &mut self,
        hierarchy: Handle,
        password: &[u8],
        template: &[u8],
    ) -> Result<(Handle, Vec<u8>), TpmError> {
        const COMMAND: Command = Command::new(0x131, "TPM2_CreatePrimary", true);
        let auth = [Auth::Password(password)];
        let mut answer = self.run(COMMAND, &[hierarchy], &auth, &creation(&[], template))?;
        Ok((answer.handle()?, answer.sized()?))
    }

    /// Makes a key under a parent: its private part, which that parent alone can load, and its public area.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn create(
        &mut self,
        parent: Handle,
        password: &[u8],
        template: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        const COMMAND: Command = Command::new(0x153, "TPM2_Create", false);
        let auth = [Auth::Password(&[])];
        let mut answer = self.run(COMMAND, &[parent], &auth, &creation(password, template))?;
        Ok((answer.sized()?, answer.sized()?))
    }

    /// Loads a key that was made under this parent.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn load(&mut self, parent: Handle, private: &[u8], public: &[u8]) -> Result<Handle, TpmError> {
        const COMMAND: Command = Command::new(0x157, "TPM2_Load", true);
        let parameters = [&sized(private)[..], &sized(public)].concat();
        self.run(COMMAND, &[parent], &[Auth::Password(&[])], &parameters)?.handle()
    }

    /// Forgets a key or a session.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn flush(&mut self, handle: Handle) -> Result<(), TpmError> {
        const COMMAND: Command = Command::new(0x165, "TPM2_FlushContext", false);
        self.run(COMMAND, &[], &[], &handle.0.to_be_bytes()).map(drop)
    }

    /// A statement about `key`, signed by `signer` with RSASSA and SHA-256: statement and signature.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn certify(
        &mut self,
        key: (Handle, &[u8]),
        signer: (Handle, &[u8]),
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        const COMMAND: Command = Command::new(0x148, "TPM2_Certify", false);
        let parameters = [&sized(&[])[..], &Scheme::RsaSsa(Hash::Sha256).to_bytes()].concat();
        let auths = [Auth::Password(key.1), Auth::Password(signer.1)];
        let mut answer = self.run(COMMAND, &[key.0, signer.0], &auths, &parameters)?;
        Ok((answer.sized()?, answer.rest().to_vec()))
    }

    /// Signs a message: the number of RSA, or the DER of ECDSA. The TPM makes the digest, so that restricted keys sign too.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn sign(
        &mut self,
        key: (Handle, &[u8]),
        scheme: Scheme,
        message: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        const HASH: Command = Command::new(0x17d, "TPM2_Hash", false);
        const SIGN: Command = Command::new(0x15d, "TPM2_Sign", false);
        let asked = [&sized(message)[..], &scheme.hash().id().to_be_bytes(), &Handle::OWNER.0.to_be_bytes()];
        let mut hashed = self.run(HASH, &[], &[], &asked.concat())?;
        let digest = hashed.sized()?;
        let asked = [&sized(&digest)[..], &scheme.to_bytes(), hashed.rest()];
        let answer = self.run(SIGN, &[key.0], &[Auth::Password(key.1)], &asked.concat())?;
        let signature = Signature::parse(answer.rest());
        signature.map(Signature::into_bytes).map_err(|_| answer.malformed("it is no signature"))
    }

    /// Opens a credential for the key `activated` with the endorsement key `protector`.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn activate_credential(
        &mut self,
        activated: (Handle, &[u8]),
        protector: Handle,
        endorsement_password: &[u8],
        credential: &[u8],
        seed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        const COMMAND: Command = Command::new(0x147, "TPM2_ActivateCredential", false);
        let session = self.endorsement_session(endorsement_password)?;
        let auths = [Auth::Password(activated.1), Auth::Policy(session)];
        let parameters = [&sized(credential)[..], &sized(seed)].concat();
        let answer = self.run(COMMAND, &[activated.0, protector], &auths, &parameters);
        if answer.is_err() {
            // It ends with the command only when that succeeds. The first error is the one to tell.
            let _ = self.flush(session);
        }
        answer?.sized().map(Zeroizing::new)
    }

    /// A session in which the policy of endorsement keys is met: whoever starts it knows the hierarchy's password.
    fn endorsement_session(&mut self, password: &[u8]) -> Result<Handle, TpmError> {
        const START: Command = Command::new(0x176, "TPM2_StartAuthSession", true);
        const SECRET: Command = Command::new(0x151, "TPM2_PolicySecret", false);
        const POLICY: u8 = 1;
        const ALG_NULL: [u8; 2] = [0, 0x10];
        let asked =
            [&sized(&[0; 16])[..], &sized(&[]), &[POLICY], &ALG_NULL, &Hash::Sha256.id().to_be_bytes()];
        let session = self.run(START, &[Handle::NULL, Handle::NULL], &[], &asked.concat())?.handle()?;
        // No nonce, no restriction to a command, no reference, no expiry.
        let asked = [&sized(&[])[..], &sized(&[]), &sized(&[]), &[0; 4]];
        let auth = [Auth::Password(password)];
        match self.run(SECRET, &[Handle::ENDORSEMENT, session], &auth, &asked.concat()) {
            Ok(_) => Ok(session),
            Err(error) => {
                let _ = self.flush(session);
                Err(error)
            }
        }
    }

    /// What is stored at an index that everybody may read.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn nv_read(&mut self, index: Handle) -> Result<Vec<u8>, TpmError> {
        const PUBLIC: Command = Command::new(0x169, "TPM2_NV_ReadPublic", false);
        const READ: Command = Command::new(0x14e, "TPM2_NV_Read", false);
        let mut answer = self.run(PUBLIC, &[index], &[], &[])?;
        let public = answer.sized()?;
        // The size comes last.
        let Some([.., high, low]) = public.get(8..) else { return Err(answer.malformed("it is cut short")) };
        let size = u16::from_be_bytes([*high, *low]);
        let mut content = Vec::new();
        while content.len() < usize::from(size) {
            let at = u16::try_from(content.len()).expect("it is shorter than its size");
            let part = NV_PART.min(size - at);
            let asked = [part.to_be_bytes(), at.to_be_bytes()].concat();
            let mut answer = self.run(READ, &[index, index], &[Auth::Password(&[])], &asked)?;
            let read = answer.sized()?;
            if read.len() != usize::from(part) {
                return Err(answer.malformed("it is not as long as was asked for"));
            }
            content.extend(read);
        }
        Ok(content)
    }
}

impl std::fmt::Debug for Tpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tpm")
    }
}

/// The only TPM in a folder of devices: the one behind the kernel's resource manager where there is one.
///
/// # Errors
/// [`TpmError::NotFound`] when there is none or more than one.
pub fn find(folder: &Path) -> Result<PathBuf, TpmError> {
    let names: Vec<String> = std::fs::read_dir(folder)
        .map_err(|source| TpmError::Open { path: folder.to_owned(), source })?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    for kind in ["tpmrm", "tpm"] {
        let numbered = |name: &&String| {
            let number = name.strip_prefix(kind);
            number
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let mut found = names.iter().filter(numbered);
        match (found.next(), found.next()) {
            (Some(name), None) => return Ok(folder.join(name)),
            (Some(_), Some(_)) => return Err(TpmError::NotFound("there is more than one TPM")),
            (None, _) => {}
        }
    }
    Err(TpmError::NotFound("there is no TPM"))
}

fn request(
    command: Command,
    handles: &[Handle],
    auths: &[Auth<'_>],
    parameters: &[u8],
) -> Zeroizing<Vec<u8>> {
    let area: usize = auths.iter().map(|auth| auth.bytes().len()).sum();
    let area_size = if auths.is_empty() { 0 } else { 4 };
    let size = 10 + 4 * handles.len() + area_size + area + parameters.len();
    let number = |size: usize| u32::try_from(size).expect("commands are short").to_be_bytes();
    // One allocation, so that no copy of a password is left behind by growing.
    let mut out = Zeroizing::new(Vec::with_capacity(size));
    out.extend(if auths.is_empty() { NO_SESSIONS } else { SESSIONS }.to_be_bytes());
    out.extend(number(size));
    out.extend(command.code.to_be_bytes());
    handles.iter().for_each(|handle| out.extend(handle.0.to_be_bytes()));
    if !auths.is_empty() {
        out.extend(number(area));
        auths.iter().for_each(|auth| out.extend_from_slice(&auth.bytes()));
    }
    out.extend_from_slice(parameters);
    out
}

impl Auth<'_> {
    /// A handle, an empty nonce, no attributes, the password.
    fn bytes(&self) -> Zeroizing<Vec<u8>> {
        let (handle, password) = match self {
            Self::Password(password) => (Handle::PASSWORD, *password),
            Self::Policy(session) => (session.0, &[][..]),
        };
        let mut out = Zeroizing::new(Vec::with_capacity(9 + password.len()));
        out.extend(handle.to_be_bytes());
        out.extend([0, 0, 0]);
        out.extend_from_slice(&u16::try_from(password.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(password);
        out
    }
}

/// Reads an answer.
///
/// # Errors
/// [`TpmError::Malformed`] or [`TpmError::Refused`].
pub fn answer(command: Command, bytes: &[u8], sessions: bool) -> Result<Answer, TpmError> {
    let malformed = |problem| TpmError::Malformed { command: command.name, problem };
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let (Some(size), Some(code)) = (number(2), number(6)) else { return Err(malformed("it is cut short")) };
    if usize::try_from(size) != Ok(bytes.len()) {
        return Err(malformed("it has not the size that it says"));
    }
    if code != 0 {
        return Err(TpmError::Refused { command: command.name, code });
    }
    let tag = if sessions { SESSIONS } else { NO_SESSIONS };
    if bytes[..2] != tag.to_be_bytes() {
        return Err(malformed("it is one to another kind of command"));
    }
    let mut at = 10;
    let handle = match command.gives_handle {
        true => {
            let handle = number(at).ok_or_else(|| malformed("it is cut short"))?;
            at += 4;
            Some(Handle(handle))
        }
        false => None,
    };
    let parameters = match sessions {
        true => {
            let size = number(at).and_then(|size| usize::try_from(size).ok());
            let end = size.and_then(|size| size.checked_add(at + 4));
            end.and_then(|end| bytes.get(at + 4..end))
        }
        false => Some(&bytes[at..]),
    };
    let parameters = parameters.ok_or_else(|| malformed("it is cut short"))?;
    Ok(Answer { command: command.name, handle, parameters: Zeroizing::new(parameters.to_vec()), at: 0 })
}

/// The parameters that keys are made with: their password, nothing of their secret, the template.
fn creation(password: &[u8], template: &[u8]) -> Zeroizing<Vec<u8>> {
    let sensitive = Zeroizing::new([&sized(password)[..], &sized(&[])].concat());
    let parts = [&sized(&sensitive)[..], &sized(template), &sized(&[]), &[0; 4]];
    Zeroizing::new(parts.concat())
}

/// Bytes behind their length.
pub fn sized(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    // What does not fit is refused by the TPM, for its size is not the one that it says.
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    Zeroizing::new([&size.to_be_bytes()[..], bytes].concat())
}

/// What to make of a response code. Codes of format one say in further bits which handle, session or parameter is meant.
fn meaning(code: u32) -> &'static str {
    const FORMAT_ONE: u32 = 0x80;
    match code {
        0x100 => "it was not started up",
        0x902 => "it has no room for another key: flush keys that are left over, or use /dev/tpmrm0",
        0x903 | 0x905 => {
            "it has no room for another session: flush sessions that are left over, or use /dev/tpmrm0"
        }
        0x921 => "it is locked after too many wrong passwords",
        RC_RETRY | RC_YIELDED | RC_TESTING => "it is busy",
        _ if code & FORMAT_ONE != 0 => match code & 0x3f {
            0x0b => "there is no such handle",
            0x0e | 0x22 => "the password is wrong",
            0x1f => {
                "the key was made by another TPM, under another storage key, or before the TPM was cleared"
            }
            0x15 => "a size is wrong",
            0x04 => "a value is wrong",
            _ => "see TPM_RC in part 2 of the TPM 2.0 specification",
        },
        _ => "see TPM_RC in part 2 of the TPM 2.0 specification",
    }
}

/// A device of the kernel, which takes a command in one write and gives an answer in one read.
struct Device(File);

impl Transport for Device {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(command)?;
        let mut answer = vec![0; MAX_ANSWER];
        let read = self.0.read(&mut answer)?;
        answer.truncate(read);
        Ok(answer)
    }
}

/// A Unix socket that takes plain commands, one on each connection.
struct Socket(PathBuf);

impl Transport for Socket {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.0)?;
        stream.set_write_timeout(Some(ANSWER))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(command)?;
        let mut answer = vec![0; 10];
        stream.read_exact(&mut answer)?;
        let size = u32::from_be_bytes([answer[2], answer[3], answer[4], answer[5]]);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if !(10..=MAX_ANSWER).contains(&size) {
            return Err(io::Error::other("the answer has an impossible size"));
        }
        answer.resize(size, 0);
        stream.read_exact(&mut answer[10..])?;
        Ok(answer)
    }
}

/// How long an answer over a socket may take. Making an RSA key takes seconds on some TPMs.
const ANSWER: Duration = Duration::from_secs(60);
/// Pauses begin at 20 ms and double: ten seconds in all.
const BUSY_TRIES: usize = 9;
/// No TPM answers with more (`TPM_PT_MAX_RESPONSE_SIZE` of the PC Client profile).
const MAX_ANSWER: usize = 4096;
/// What each TPM gives out of its storage at once.
const NV_PART: u16 = 256;
const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
const RC_YIELDED: u32 = 0x908;
const RC_TESTING: u32 = 0x90a;
const RC_RETRY: u32 = 0x922;

/// The public area as the structures' reader wants it, from bytes that may have their length in front, as other tools write them.
pub(crate) fn without_length(bytes: &[u8]) -> &[u8] {
    match bytes {
        [high, low, rest @ ..] if usize::from(u16::from_be_bytes([*high, *low])) == rest.len() => rest,
        bytes => bytes,
    }
}

/// Reads a public area that may have its length in front.
pub(crate) fn public(bytes: &[u8]) -> Result<Public, bonafide_pki::tpm::TpmError> {
    Public::parse(without_length(bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Plays answers, and keeps what was asked.
    struct Played {
        answers: VecDeque<Vec<u8>>,
        asked: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl Transport for Played {
        fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
            self.asked.lock().unwrap().push(command.to_vec());
            self.answers.pop_front().ok_or_else(|| io::Error::other("nothing left"))
        }
    }

    fn played(answers: &[Vec<u8>]) -> (Tpm, Arc<Mutex<Vec<Vec<u8>>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let transport = Played { answers: answers.iter().cloned().collect(), asked: Arc::clone(&asked) };
        (Tpm::over(Box::new(transport)), asked)
    }

    fn raw(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(10 + body.len()).unwrap();
        [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), body].concat()
    }

    #[test]
    fn a_busy_tpm_is_asked_again_and_a_refusal_is_told() {
        let busy = raw(NO_SESSIONS, RC_RETRY, &[]);
        let (mut tpm, asked) = played(&[busy.clone(), raw(NO_SESSIONS, 0, &[])]);
        tpm.flush(Handle(0x8000_0001)).unwrap();
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0], asked[1]);
        assert_eq!(asked[0], raw(NO_SESSIONS, 0x165, &[0x80, 0, 0, 1]));
        let (mut tpm, _) = played(&[raw(NO_SESSIONS, 0x98e, &[])]);
        let error = tpm.flush(Handle(1)).unwrap_err();
        assert_eq!(error.to_string(), "the TPM refuses TPM2_FlushContext: the password is wrong (0x98e)");
    }

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        const MADE: Command = Command::new(1, "Made", true);
        let body = [&[0x80, 0, 0, 1][..], &[0, 0, 0, 4], &[0, 2, 7, 7], &[0, 0, 0, 0, 0]].concat();
        let whole = raw(SESSIONS, 0, &body);
        let mut read = answer(MADE, &whole, true).unwrap();
        assert_eq!(read.handle().unwrap(), Handle(0x8000_0001));
        assert_eq!(read.sized().unwrap(), [7, 7]);
        assert!(read.rest().is_empty() && read.sized().is_err());
        for cut in 0..whole.len() {
            assert!(matches!(answer(MADE, &whole[..cut], true), Err(TpmError::Malformed { .. })), "{cut}");
        }
        assert!(answer(MADE, &whole, false).is_err());
        for short in 0..8 {
            assert!(answer(MADE, &raw(SESSIONS, 0, &body[..short]), true).is_err(), "{short}");
        }
        let long = raw(SESSIONS, 0, &[&body[..4], &[0xff; 4]].concat());
        assert!(answer(MADE, &long, true).is_err());
    }

    #[test]
    fn passwords_are_carried_beside_the_handles() {
        let (mut tpm, asked) = played(&[]);
        let command = Command::new(0x157, "TPM2_Load", true);
        let handles = [Handle(0x8000_0000)];
        assert!(matches!(
            tpm.run(command, &handles, &[Auth::Password(b"pw"), Auth::Policy(Handle(0x0300_0000))], &[9]),
            Err(TpmError::Io { .. })
        ));
        let mut body = vec![0x80, 0, 0, 0, 0, 0, 0, 20];
        body.extend([0x40, 0, 0, 9, 0, 0, 0, 0, 2, b'p', b'w']);
        body.extend([3, 0, 0, 0, 0, 0, 0, 0, 0]);
        body.push(9);
        assert_eq!(asked.lock().unwrap()[0], raw(SESSIONS, 0x157, &body));
    }

    #[test]
    fn the_only_tpm_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let touch = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
        assert!(matches!(find(folder.path()), Err(TpmError::NotFound("there is no TPM"))));
        for name in ["tpm", "tpmrmx", "vtpmx", "null"] {
            touch(name);
        }
        assert!(find(folder.path()).is_err());
        touch("tpm0");
        assert_eq!(find(folder.path()).unwrap(), folder.path().join("tpm0"));
        touch("tpmrm0");
        assert_eq!(find(folder.path()).unwrap(), folder.path().join("tpmrm0"));
        touch("tpmrm1");
        let several = find(folder.path()).unwrap_err().to_string();
        assert_eq!(several, "there is more than one TPM: set node_attestor.tpm_devid.tpm_device_path");
        assert!(Tpm::open(&folder.path().join("tpm0")).unwrap_err().to_string().contains("tpm0"));
    }

    #[test]
    fn lengths_in_front_are_optional() {
        assert_eq!(without_length(&[0, 2, 7, 8]), [7, 8]);
        assert_eq!(without_length(&[0, 1, 7, 8]), [0, 1, 7, 8]);
        assert_eq!(without_length(&[7]), [7]);
    }
}
