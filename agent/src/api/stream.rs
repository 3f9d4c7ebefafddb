//! One stream for all kinds of things that workloads subscribe to.
//!
//! A [`Feed`] says what to make of a view of the cache; everything else is the same for all: wait for a relevant change,
//! look whether the caller still lives, make the message from the newest state when the client has room for it, leave
//! out repetitions where the contract says so.

use std::time::Duration;

use bonafide_runtime::clock::SharedClock;
use bonafide_runtime::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use super::ATTESTATION_FAILED;
use crate::caller::PinnedCaller;
use crate::metrics;
use crate::svid_cache::{Interest, Kind, Subscription, View};

/// What comes next on a stream.
pub(super) enum Next<M> {
    /// This.
    Send(M),
    /// Nothing until something changes.
    Wait,
    /// The end.
    End(Status),
}

/// The contents of a stream.
pub(super) trait Feed: Send + Sync + 'static {
    /// Of which kind the SVIDs in a view are.
    type Kind: Kind;
    /// What is sent.
    type Message: Send + 'static;
    /// What tells two messages apart.
    type Mark: PartialEq + Send;
    /// The method, for metrics.
    const METHOD: &'static str;
    /// What wakes the stream.
    const INTEREST: Interest;

    /// What a message is compared by with the one before, to leave out repetitions; nothing when each is to be sent.
    fn mark(&self, message: &Self::Message) -> Option<Self::Mark>;

    /// What comes next.
    fn next(&self, view: View<<Self::Kind as Kind>::Svid>) -> Next<Self::Message>;
}

/// A process on whose life a stream depends.
pub(super) struct Watched {
    pub(super) process: PinnedCaller,
    /// What the stream ends with when the process has.
    pub(super) gone: fn() -> Status,
}

impl Watched {
    /// The process at the other end.
    pub(super) fn caller(process: PinnedCaller) -> Self {
        Self { process, gone: || Status::unavailable(ATTESTATION_FAILED) }
    }

    fn check(&self) -> Result<(), Status> {
        if self.process.is_running() { Ok(()) } else { Err((self.gone)()) }
    }
}

/// Decides again before each message whether the caller may have it.
pub(super) trait Gate: Send + 'static {
    /// Waits until the answer may have changed.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// Whether the caller may have a message now.
    fn check(&mut self) -> Result<(), Status>;
}

/// For streams whose subscription is the caller's own: what it may have is what it sees.
pub(super) struct Open;

impl Gate for Open {
    async fn changed(&mut self) {
        std::future::pending::<()>().await;
    }

    fn check(&mut self) -> Result<(), Status> {
        Ok(())
    }
}

/// What a stream runs in.
pub(super) struct Channel<G = Open> {
    pub(super) subscription: Subscription,
    pub(super) watched: Vec<Watched>,
    pub(super) gate: G,
    pub(super) clock: SharedClock,
    pub(super) shutdown: Shutdown,
}

pub(super) type Messages<M> = ReceiverStream<Result<M, Status>>;

/// Starts a stream.
pub(super) fn open<F: Feed, G: Gate>(feed: F, channel: Channel<G>) -> Response<Messages<F::Message>> {
    let (send, receive) = mpsc::channel(1);
    tokio::spawn(run(feed, channel, send));
    Response::new(ReceiverStream::new(receive))
}

async fn run<F: Feed, G: Gate>(
    feed: F,
    mut channel: Channel<G>,
    send: mpsc::Sender<Result<F::Message, Status>>,
) {
    metrics::workload_stream(F::METHOD, 1.0);
    let code = match push(&feed, &mut channel, &send).await {
        Ok(()) => Code::Ok,
        Err(status) => {
            let code = status.code();
            // Nobody listens any more when this fails.
            let _ = send.send(Err(status)).await;
            code
        }
    };
    metrics::workload_stream(F::METHOD, -1.0);
    metrics::workload_called(F::METHOD, code);
}

/// Ends without error when the client has gone.
async fn push<F: Feed, G: Gate>(
    feed: &F,
    channel: &mut Channel<G>,
    send: &mpsc::Sender<Result<F::Message, Status>>,
) -> Result<(), Status> {
    let Channel { subscription, watched, gate, clock, shutdown } = channel;
    let mut last: Option<F::Mark> = None;
    loop {
        // Room first, state afterwards: a slow client gets the newest state and not a queue of old ones.
        let room = tokio::select! {
            room = send.reserve() => room,
            () = shutdown.triggered() => return Err(Status::unavailable(STOPPING)),
        };
        let Ok(room) = room else { return Ok(()) };
        let next = subscription.view::<F::Kind>(clock.now()).map_or(Next::Wait, |view| feed.next(view));
        gate.check()?;
        watched.iter().try_for_each(Watched::check)?;
        match next {
            Next::Send(message) => {
                let mark = feed.mark(&message);
                if mark.is_none() || mark != last {
                    last = mark;
                    room.send(Ok(message));
                    metrics::workload_updated(F::METHOD);
                }
            }
            Next::Wait => drop(room),
            Next::End(status) => return Err(status),
        }
        loop {
            tokio::select! {
                () = subscription.changed() => break,
                () = gate.changed() => break,
                () = send.closed() => return Ok(()),
                () = shutdown.triggered() => return Err(Status::unavailable(STOPPING)),
                // Somebody else may hold the socket of a caller that is gone.
                () = tokio::time::sleep(LIFE_CHECK) => {
                    gate.check()?;
                    watched.iter().try_for_each(Watched::check)?;
                }
            }
        }
    }
}

const STOPPING: &str = "the agent is stopping";
const LIFE_CHECK: Duration = Duration::from_secs(30);
