//! PostgreSQL: the one driver of a database that several servers share.
//!
//! | table | holds |
//! |---|---|
//! | `bonafide_records` | the records of the seam, one row each |
//! | `bonafide_batches` | the log: what each of the last commits did |
//!
//! The record of the store's header is the row that a writer locks, so a commit is one transaction: lock, read the log,
//! write records and log, notify. One connection does all of it: notifications arrive on it while it is idle, and what was
//! committed while it was busy is read when the lock is taken.
//!
//! The client library is asynchronous and the writer a thread, so each driver brings a runtime of one thread and waits
//! with a bound. A connection that failed in any way is dropped and made anew.

use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use bonafide_pki::{pem, tls};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Socket, Statement};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::super::PostgresConfig;
use super::connection_string::{ConnectionString, parse};
use super::{Batch, Driver, KeyValue, KvError, News, Range, Replacing, Shared, SharedDriver, Visitor};

/// Log entries that are kept, at most; a server that is further behind reads everything anew.
const KEPT_BATCHES: i64 = 4096;
/// Bytes of the log that are kept, at most, beyond the last [`ALWAYS_KEPT`] entries.
const KEPT_BYTES: i64 = 256 << 20;
const ALWAYS_KEPT: i64 = 64;
/// The log is shortened at each commit whose number is a multiple of this.
const SHORTEN_EVERY: u64 = 64;
/// Log entries in one answer.
const NEWS: i64 = 64;
/// Records in one answer of a scan.
const PAGE: i64 = 500;
/// How much longer than the database's own timeouts we wait for it to say so.
const GRACE: Duration = Duration::from_secs(2);
/// How long a copy may rest between two questions: its reader decides the pace.
const SNAPSHOT_REST: Duration = Duration::from_secs(600);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS bonafide_records (key bytea PRIMARY KEY, value bytea NOT NULL);
    CREATE TABLE IF NOT EXISTS bonafide_batches
        (sequence bigint PRIMARY KEY, total bigint NOT NULL, batch bytea NOT NULL);";
/// One statement, so that there is no half of it whatever happens between here and the database.
const WRITE: &str = "
    WITH put AS (INSERT INTO bonafide_records (key, value) SELECT * FROM unnest($1::bytea[], $2::bytea[])
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value),
         gone AS (DELETE FROM bonafide_records WHERE key = ANY($3::bytea[])),
         logged AS (INSERT INTO bonafide_batches (sequence, total, batch)
                    SELECT $4::bigint, octet_length($5::bytea) + coalesce(
                        (SELECT total FROM bonafide_batches ORDER BY sequence DESC LIMIT 1), 0), $5::bytea
                    WHERE $4::bigint > 0)
    SELECT pg_notify('bonafide', $4::bigint::text) WHERE $4::bigint > 0";
const SHORTEN: &str = "
    DELETE FROM bonafide_batches WHERE sequence < $1::bigint - $2::bigint
        OR (sequence < $1::bigint - $3::bigint
            AND total < (SELECT max(total) FROM bonafide_batches) - $4::bigint)";
/// The entry that is known already comes first, without its content: it shows that the log still reaches back to it.
const READ_NEWS: &str = "
    SELECT sequence, CASE WHEN sequence > $1::bigint THEN batch END FROM bonafide_batches
    WHERE sequence >= $1::bigint ORDER BY sequence LIMIT $2::bigint";
const LOCK: &str = "SELECT value FROM bonafide_records WHERE key = $1 FOR UPDATE";

/// How to reach the database.
pub(super) struct Postgres {
    config: Option<PostgresConfig>,
    /// Tells this server from the others; empty for a database without servers.
    server: String,
    background: OnceLock<Arc<Background>>,
    wake: Arc<OnceLock<Wake>>,
    /// The last session of this process, to be ended when the database has not noticed yet that it is over.
    session: Arc<AtomicI32>,
}

type Wake = Box<dyn Fn() + Send + Sync>;

/// The thread that talks to the database.
struct Background {
    runtime: Option<Runtime>,
    timeout: Duration,
}

impl Background {
    /// Runs `work` there and waits for it, not longer than the database itself would take to give up.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, KvError>> + Send + 'static,
    ) -> Result<T, KvError> {
        let (send, receive) = mpsc::sync_channel(1);
        let silent =
            || KvError::Unreachable(format!("the database gave no answer within {:?}", self.timeout + GRACE));
        let runtime = self.runtime.as_ref().ok_or_else(silent)?;
        let task = runtime.spawn(async move {
            // Whoever does not wait any more does not need the answer.
            let _ = send.send(work.await);
        });
        receive.recv_timeout(self.timeout + GRACE).unwrap_or_else(|_| {
            task.abort();
            Err(silent())
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: the last owner may itself be within a runtime.
            runtime.shutdown_background();
        }
    }
}

impl Postgres {
    pub(super) fn new(config: Option<PostgresConfig>, server: &str) -> Self {
        Self {
            config,
            server: server.to_owned(),
            background: OnceLock::new(),
            wake: Arc::default(),
            session: Arc::default(),
        }
    }

    fn config(&self) -> Result<&PostgresConfig, KvError> {
        self.config.as_ref().ok_or_else(|| other("the store has no connection string"))
    }

    fn background(&self) -> Result<Arc<Background>, KvError> {
        if let Some(background) = self.background.get() {
            return Ok(Arc::clone(background));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store-postgres")
            .enable_all()
            .build()?;
        let background = Background { runtime: Some(runtime), timeout: self.config()?.timeout };
        Ok(Arc::clone(self.background.get_or_init(|| Arc::new(background))))
    }

    fn connect(&self, purpose: Purpose) -> Result<Database, KvError> {
        let config = self.config()?.clone();
        let text = Zeroizing::new(config.connection_string.read()?);
        let mut parsed =
            parse(&text).map_err(|error| other(format!("store.postgres.connection_string {error}")))?;
        parsed.ca = config.ca_path.clone().or(parsed.ca);
        parsed.certificate = config.client_certificate_path.clone().or(parsed.certificate);
        parsed.key = config.client_key_path.clone().or(parsed.key);
        let tls = Tls(if parsed.tls { Some(Arc::new(client_config(&parsed)?)) } else { None });
        let background = self.background()?;
        let (wake, session) = (Arc::clone(&self.wake), Arc::clone(&self.session));
        let (server, timeout) = (self.server.clone(), config.timeout);
        let opened = background.wait(async move {
            let mut session = Session { server: &server, timeout, wake, previous: &session, purpose };
            session.open(parsed, tls).await
        })?;
        let (client, statements, connection) = opened;
        Ok(Database { background, client, statements, _connection: connection })
    }
}

impl Driver for Postgres {
    fn open(&self) -> Result<Box<dyn KeyValue>, KvError> {
        Ok(Box::new(self.connect(Purpose::Serve)?))
    }

    fn file(&self) -> Option<&Path> {
        None
    }

    fn shared(&self) -> Option<&dyn SharedDriver> {
        Some(self)
    }
}

impl SharedDriver for Postgres {
    fn describe(&self) -> String {
        let Some(parsed) =
            self.config.as_ref().and_then(|config| parse(&config.connection_string.read().ok()?).ok())
        else {
            return "postgresql".to_owned();
        };
        let hosts: Vec<_> = parsed
            .config
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        format!("postgresql://{}/{}", hosts.join(","), parsed.config.get_dbname().unwrap_or_default())
    }

    fn on_news(&self, wake: Wake) {
        // The first one counts; the store sets it once.
        let _ = self.wake.set(wake);
    }

    fn snapshot(&self) -> Result<Box<dyn KeyValue>, KvError> {
        let database = self.connect(Purpose::Copy)?;
        // The first question fixes the moment.
        database.simple(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1 FROM bonafide_records LIMIT 1",
        )?;
        Ok(Box::new(database))
    }

    fn replace(&self, suffix: &str) -> Result<Box<dyn Replacing>, KvError> {
        let database = self.connect(Purpose::Copy)?;
        let name = |table: &str| format!("{table}_{suffix}");
        // The statements of this connection are bound to the old tables; PostgreSQL plans them anew.
        database.simple(&format!(
            "BEGIN;
             LOCK TABLE bonafide_records, bonafide_batches IN ACCESS EXCLUSIVE MODE;
             ALTER TABLE bonafide_records RENAME CONSTRAINT bonafide_records_pkey TO {0}_pkey;
             ALTER TABLE bonafide_records RENAME TO {0};
             ALTER TABLE bonafide_batches RENAME CONSTRAINT bonafide_batches_pkey TO {1}_pkey;
             ALTER TABLE bonafide_batches RENAME TO {1};
             {TABLES}",
            name("bonafide_records"),
            name("bonafide_batches"),
        ))?;
        Ok(Box::new(database))
    }
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The server's own: one for each server.
    Serve,
    /// A copy of everything, or a new content.
    Copy,
}

/// How a connection is made.
struct Session<'a> {
    server: &'a str,
    timeout: Duration,
    wake: Arc<OnceLock<Wake>>,
    previous: &'a Arc<AtomicI32>,
    purpose: Purpose,
}

type Opened = (Arc<Client>, Arc<Statements>, Connection);

impl Session<'_> {
    async fn open(&mut self, parsed: ConnectionString, tls: Tls) -> Result<Opened, KvError> {
        let mut config = parsed.config;
        if config.get_application_name().is_none() {
            config.application_name("bonafide-server");
        }
        config.connect_timeout(self.timeout / 2).tcp_user_timeout(self.timeout);
        config.keepalives_idle(self.timeout).keepalives_interval(self.timeout / 2).keepalives_retries(3);
        let (client, mut connection) =
            config.connect(tls).await.map_err(|error| match from_postgres(&error) {
                KvError::Io(error) => KvError::Unreachable(error.to_string()),
                error => error,
            })?;
        let (wake, own) = (Arc::clone(&self.wake), Arc::clone(self.previous));
        let serves = self.purpose == Purpose::Serve;
        let connection = Connection(tokio::spawn(async move {
            loop {
                let message = poll_fn(|context| connection.poll_message(context)).await;
                let over = !matches!(message, Some(Ok(_)));
                // Of our own commits we know.
                let news = matches!(&message, Some(Ok(AsyncMessage::Notification(from)))
                    if from.process_id() != own.load(Ordering::Relaxed));
                if serves
                    && (over || news)
                    && let Some(wake) = wake.get()
                {
                    wake();
                }
                if over {
                    return;
                }
            }
        }));
        self.settings(&client).await?;
        self.tables(&client).await?;
        if serves {
            self.claim(&client).await?;
            client.batch_execute("LISTEN bonafide").await.map_err(|error| from_postgres(&error))?;
        }
        let statements = Statements::prepare(&client).await.map_err(|error| from_postgres(&error))?;
        Ok((Arc::new(client), Arc::new(statements), connection))
    }

    async fn settings(&self, client: &Client) -> Result<(), KvError> {
        let timeout = self.timeout.as_millis();
        // A server that stops between lock and commit must not stop the others.
        let rest = match self.purpose {
            Purpose::Serve => self.timeout / 2,
            Purpose::Copy => SNAPSHOT_REST,
        };
        client
            .batch_execute(&format!(
                "SET statement_timeout = {timeout}; SET lock_timeout = {timeout};
                 SET idle_in_transaction_session_timeout = {}; SET client_min_messages = warning;
                 SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
                 SET tcp_user_timeout = {timeout}; SET default_transaction_isolation = 'read committed'",
                rest.as_millis()
            ))
            .await
            .map_err(|error| from_postgres(&error))?;
        let row = client
            .query_one(
                "SELECT current_setting('synchronous_commit'), current_setting('fsync'),
                        current_setting('full_page_writes'), pg_is_in_recovery()",
                &[],
            )
            .await
            .map_err(|error| from_postgres(&error))?;
        if row.get::<_, bool>(3) {
            return Err(KvError::Unreachable(
                "the database is a standby: connect to the primary, or name all hosts of the cluster"
                    .to_owned(),
            ));
        }
        if row.get::<_, &str>(0) == "off" {
            client
                .batch_execute("SET synchronous_commit = on")
                .await
                .map_err(|error| from_postgres(&error))?;
        }
        for (position, name) in [(1, "fsync"), (2, "full_page_writes")] {
            if row.get::<_, &str>(position) == "off" && self.purpose == Purpose::Serve {
                tracing::warn!(
                    setting = name,
                    "PostgreSQL has it off: a power cut may lose or damage the store"
                );
            }
        }
        Ok(())
    }

    async fn tables(&self, client: &Client) -> Result<(), KvError> {
        let there = client
            .query_one(
                "SELECT to_regclass('bonafide_records') IS NOT NULL AND to_regclass('bonafide_batches') IS NOT NULL",
                &[],
            )
            .await
            .map_err(|error| from_postgres(&error))?;
        if there.get(0) {
            return Ok(());
        }
        // Of two servers that start at once one waits.
        let make = format!("BEGIN; SELECT pg_advisory_xact_lock({TABLES_LOCK}); {TABLES} COMMIT");
        client.batch_execute(&make).await.map_err(|error| from_postgres(&error))
    }

    /// Makes sure that no other process serves as this server: its keys would be two servers' keys.
    async fn claim(&self, client: &Client) -> Result<(), KvError> {
        if self.server.is_empty() {
            return Ok(());
        }
        // Two of 2^60 identities alike are a server that does not start, not one that does harm.
        let key =
            self.server.get(..15).and_then(|text| i64::from_str_radix(text, 16).ok()).unwrap_or_default();
        let failed = |error: tokio_postgres::Error| from_postgres(&error);
        let mut patience = 20;
        loop {
            let row = client.query_one("SELECT pg_try_advisory_lock($1), pg_backend_pid()", &[&key]).await;
            let row = row.map_err(failed)?;
            if row.get(0) {
                self.previous.store(row.get(1), Ordering::Relaxed);
                return Ok(());
            }
            if patience == 0 {
                return Err(KvError::Busy);
            }
            patience -= 1;
            // Our own session of before, whose end the database has not noticed.
            let previous = self.previous.load(Ordering::Relaxed);
            if previous != 0 {
                client.query("SELECT pg_terminate_backend($1)", &[&previous]).await.map_err(failed)?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

const TABLES_LOCK: i64 = 0x0b0a_f1de;

/// Ends the connection when it is dropped.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Statements {
    get: Statement,
    scan: Statement,
    scan_until: Statement,
    write: Statement,
    lock: Statement,
    news: Statement,
    shorten: Statement,
}

impl Statements {
    async fn prepare(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let scan = "SELECT key, value FROM bonafide_records WHERE key >= $1 ORDER BY key LIMIT $2";
        let until =
            "SELECT key, value FROM bonafide_records WHERE key >= $1 AND key < $3 ORDER BY key LIMIT $2";
        Ok(Self {
            get: client.prepare("SELECT key, value FROM bonafide_records WHERE key = ANY($1)").await?,
            scan: client.prepare(scan).await?,
            scan_until: client.prepare(until).await?,
            write: client.prepare(WRITE).await?,
            lock: client.prepare(LOCK).await?,
            news: client.prepare(READ_NEWS).await?,
            shorten: client.prepare(SHORTEN).await?,
        })
    }
}

/// One connection.
struct Database {
    background: Arc<Background>,
    client: Arc<Client>,
    statements: Arc<Statements>,
    _connection: Connection,
}

impl Database {
    fn ask<T, F>(&self, question: impl FnOnce(Arc<Client>, Arc<Statements>) -> F) -> Result<T, KvError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, tokio_postgres::Error>> + Send + 'static,
    {
        let asked = question(Arc::clone(&self.client), Arc::clone(&self.statements));
        self.background.wait(async move { asked.await.map_err(|error| from_postgres(&error)) })
    }

    fn simple(&self, text: &str) -> Result<(), KvError> {
        let text = text.to_owned();
        self.ask(|client, _| async move { client.batch_execute(&text).await })
    }

    /// Writes, logs when `sequence` is not 0, and commits.
    fn write(
        &self,
        batch: &Batch,
        sequence: u64,
        entry: &[u8],
        begin: bool,
        end: bool,
    ) -> Result<(), KvError> {
        let (mut keys, mut values, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (key, value) in batch.iter() {
            match value {
                Some(value) => {
                    keys.push(key.to_vec());
                    values.push(value.to_vec());
                }
                None => gone.push(key.to_vec()),
            }
        }
        let (number, entry) = (number(sequence), entry.to_vec());
        self.ask(|client, statements| async move {
            if begin {
                client.batch_execute("BEGIN").await?;
            }
            let parameters: [&(dyn ToSql + Sync); 5] = [&keys, &values, &gone, &number, &entry];
            let write = client.query(&statements.write, &parameters);
            if !end {
                return write.await.map(drop);
            }
            if sequence.is_multiple_of(SHORTEN_EVERY) && sequence > 0 {
                let bounds: [&(dyn ToSql + Sync); 4] = [&number, &KEPT_BATCHES, &ALWAYS_KEPT, &KEPT_BYTES];
                client.execute(&statements.shorten, &bounds).await?;
            }
            // One after the other on one connection, in one journey. Where the first fails the second ends a transaction
            // that has written nothing.
            let (written, committed) = tokio::join!(write, client.batch_execute("COMMIT"));
            written?;
            committed
        })
    }
}

impl KeyValue for Database {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.get_many(&[key])?.pop().flatten())
    }

    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>, KvError> {
        let wanted: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
        let rows =
            self.ask(|client, statements| async move { client.query(&statements.get, &[&wanted]).await })?;
        let found: std::collections::HashMap<&[u8], &[u8]> =
            rows.iter().map(|row| (row.get::<_, &[u8]>(0), row.get::<_, &[u8]>(1))).collect();
        Ok(keys.iter().map(|key| found.get(key).map(|value| value.to_vec())).collect())
    }

    fn scan(&self, range: &Range, visit: Visitor<'_>) -> Result<(), KvError> {
        if range.is_void() {
            return Ok(());
        }
        let mut from = range.from.clone();
        loop {
            let (first, to) = (from.clone(), range.to.clone());
            let rows = self.ask(|client, statements| async move {
                match to {
                    Some(to) => client.query(&statements.scan_until, &[&first, &PAGE, &to]).await,
                    None => client.query(&statements.scan, &[&first, &PAGE]).await,
                }
            })?;
            for row in &rows {
                if visit(row.get(0), row.get(1)).is_break() {
                    return Ok(());
                }
            }
            match rows.last() {
                Some(last) if rows.len() >= PAGE as usize => from = Range::after(last.get(0)).from,
                _ => return Ok(()),
            }
        }
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), KvError> {
        self.write(batch, 0, &[], true, true)
    }

    fn size(&self) -> Result<u64, KvError> {
        let row = self.ask(|client, _| async move {
            let both = "SELECT pg_total_relation_size('bonafide_records') + pg_total_relation_size('bonafide_batches')";
            client.query_one(both, &[]).await
        })?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
    }

    fn shared(&mut self) -> Option<&mut dyn Shared> {
        Some(self)
    }
}

impl Shared for Database {
    fn begin(&mut self, lock: &[u8], after: u64) -> Result<(Vec<u8>, News), KvError> {
        let (header, known) = (lock.to_vec(), number(after));
        let (locked, rows) = self.ask(|client, statements| async move {
            // One journey; the log is read with a view of its own, after the lock was had.
            let parameters: [&(dyn ToSql + Sync); 1] = [&header];
            let bounds: [&(dyn ToSql + Sync); 2] = [&known, &NEWS];
            let (begun, locked, rows) = tokio::join!(
                client.batch_execute("BEGIN"),
                client.query(&statements.lock, &parameters),
                client.query(&statements.news, &bounds),
            );
            begun?;
            Ok((locked?, rows?))
        })?;
        match locked.first() {
            Some(locked) => Ok((locked.get(0), news(after, &rows))),
            None => Err(KvError::Damaged("the header record is missing".to_owned())),
        }
    }

    fn news(&mut self, after: u64) -> Result<News, KvError> {
        let known = number(after);
        let rows =
            self.ask(
                |client, statements| async move { client.query(&statements.news, &[&known, &NEWS]).await },
            )?;
        Ok(news(after, &rows))
    }

    fn commit_logged(&mut self, batch: &Batch, sequence: u64, entry: &[u8]) -> Result<(), KvError> {
        self.write(batch, sequence, entry, false, true)
    }

    fn end(&mut self) -> Result<(), KvError> {
        self.simple("ROLLBACK")
    }

    fn confirm(&mut self, key: &[u8]) -> Result<(), KvError> {
        let key = key.to_vec();
        self.ask(|client, _| async move {
            client.execute("UPDATE bonafide_records SET value = value WHERE key = $1", &[&key]).await?;
            client.batch_execute("COMMIT").await
        })
    }

    fn found(&mut self, key: &[u8], value: &[u8], sequence: u64) -> Result<(), KvError> {
        let (key, value, sequence) = (key.to_vec(), value.to_vec(), number(sequence));
        self.ask(|client, _| async move {
            client.batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({TABLES_LOCK})")).await?;
            let put = "WITH put AS (INSERT INTO bonafide_records (key, value)
                            SELECT $1::bytea, $2::bytea WHERE NOT EXISTS (SELECT FROM bonafide_records) RETURNING 1)
                       INSERT INTO bonafide_batches (sequence, total, batch) SELECT $3::bigint, 0, '' FROM put";
            client.execute(put, &[&key, &value, &sequence]).await?;
            client.batch_execute("COMMIT").await
        })
    }
}

impl Replacing for Database {
    fn add(&mut self, batch: &Batch) -> Result<(), KvError> {
        self.write(batch, 0, &[], false, false)
    }

    fn finish(&mut self, sequence: u64) -> Result<(), KvError> {
        let sequence = number(sequence);
        self.ask(|client, _| async move {
            let begin = "INSERT INTO bonafide_batches (sequence, total, batch) VALUES ($1, 0, '')";
            client.execute(begin, &[&sequence]).await?;
            client.batch_execute("COMMIT").await
        })
    }
}

/// The rows begin with what is known, if the log still has it.
fn news(after: u64, rows: &[tokio_postgres::Row]) -> News {
    let mut entries = Vec::with_capacity(rows.len());
    for (expected, row) in (number(after)..).zip(rows) {
        if row.get::<_, i64>(0) != expected {
            return News::Unknown;
        }
        entries.extend(row.get::<_, Option<Vec<u8>>>(1));
    }
    if rows.is_empty() {
        return News::Unknown;
    }
    News::Entries { entries, more: rows.len() >= NEWS as usize }
}

/// Commits are counted from 1 and never reach the end of what PostgreSQL can count.
fn number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

fn other(what: impl Into<String>) -> KvError {
    KvError::Io(std::io::Error::other(what.into()))
}

/// Sorts what went wrong. The text names neither password nor user beyond what PostgreSQL itself says.
fn from_postgres(error: &tokio_postgres::Error) -> KvError {
    let Some(told) = error.as_db_error() else {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        return KvError::Unreachable(format!("the database cannot be reached: {error}{source}"));
    };
    let text = format!("PostgreSQL: {} ({})", told.message(), told.code().code());
    match told.code() {
        code if *code == SqlState::DISK_FULL => KvError::Full,
        code if *code == SqlState::DATA_CORRUPTED || *code == SqlState::INDEX_CORRUPTED => {
            KvError::Damaged(text)
        }
        code if *code == SqlState::LOCK_NOT_AVAILABLE => {
            KvError::Unreachable(format!("another server keeps the store locked: {text}"))
        }
        // Connection, resources, intervention, transaction state: it passes.
        code if ["08", "25", "53", "57"].iter().any(|class| code.code().starts_with(class)) => {
            KvError::Unreachable(text)
        }
        _ => other(text),
    }
}

fn client_config(parsed: &ConnectionString) -> Result<ClientConfig, KvError> {
    let read = |path: &Path| -> Result<Zeroizing<Vec<u8>>, KvError> {
        let read = std::fs::read(path).map(Zeroizing::new);
        read.map_err(|error| other(format!("{}: {error}", path.display())))
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, KvError> {
        let blocks =
            pem::decode_all(&read(path)?).map_err(|error| other(format!("{}: {error}", path.display())))?;
        let found: Vec<_> = blocks
            .into_iter()
            .filter(|(label, _)| label == "CERTIFICATE")
            .map(|(_, der)| CertificateDer::from(der))
            .collect();
        if found.is_empty() { Err(other(format!("{}: no certificate", path.display()))) } else { Ok(found) }
    };
    let mut roots = RootCertStore::empty();
    match &parsed.ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| other(format!("{}: {error}", path.display())))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(other(
                    "the system has no roots to verify the database with: set store.postgres.ca_path",
                ));
            }
        }
    }
    let failed = |error: tokio_rustls::rustls::Error| other(format!("TLS to the database: {error}"));
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots);
    let (Some(certificate), Some(key_path)) = (&parsed.certificate, &parsed.key) else {
        return Ok(config.with_no_client_auth());
    };
    let blocks = pem::decode_all(&read(key_path)?)
        .map_err(|error| other(format!("{}: {error}", key_path.display())))?;
    let key = blocks.into_iter().find(|(label, _)| label == "PRIVATE KEY").ok_or_else(|| {
        let convert = "convert it with `openssl pkcs8 -topk8 -nocrypt`";
        other(format!("{}: no PKCS#8 key; {convert}", key_path.display()))
    })?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.1));
    config.with_client_auth_cert(certificates(certificate)?, key).map_err(failed)
}

/// Makes TLS of a connection; not asked where the connection string says that there is none.
#[derive(Clone)]
struct Tls(Option<Arc<ClientConfig>>);

struct ToHost {
    config: Option<Arc<ClientConfig>>,
    name: ServerName<'static>,
}

struct Secured(Box<tokio_rustls::client::TlsStream<Socket>>);

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Secured;
    type TlsConnect = ToHost;
    type Error = bonafide_runtime::BoxError;

    fn make_tls_connect(&mut self, host: &str) -> Result<ToHost, Self::Error> {
        // Asked also where there is no TLS, with the path of a socket.
        let name = match &self.0 {
            Some(_) => ServerName::try_from(host.to_owned())?,
            None => ServerName::try_from("localhost")?,
        };
        Ok(ToHost { config: self.0.clone(), name })
    }
}

impl TlsConnect<Socket> for ToHost {
    type Stream = Secured;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Secured>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let config = self.config.ok_or_else(|| std::io::Error::other("TLS is switched off"))?;
            let stream = TlsConnector::from(config).connect(self.name, socket).await?;
            Ok(Secured(Box::new(stream)))
        })
    }
}

impl TlsStream for Secured {
    fn channel_binding(&self) -> ChannelBinding {
        // The certificate is verified; binding the password to it would add nothing.
        ChannelBinding::none()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
