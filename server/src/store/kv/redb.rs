//! redb: one file, two-phase commit pages, refuses damaged files by itself. The second embedded driver.

use std::fs::OpenOptions;
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{
    CommitError, Database, DatabaseError, Durability, ReadableDatabase, StorageError, TableDefinition,
    TableError, TransactionError,
};

use super::{Batch, KeyValue, KvError, Range, Visitor, sync_folder};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

struct Redb {
    database: Database,
    path: PathBuf,
}

pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<Box<dyn KeyValue>, KvError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(KvError::from_io)?;
    let cache = usize::try_from(cache_bytes).unwrap_or(usize::MAX);
    let backend = FileBackend::new(file).map_err(from_database)?;
    let database =
        Database::builder().set_cache_size(cache).create_with_backend(backend).map_err(from_database)?;
    // The table exists from the first moment on, so that reading needs no special case. An existing database is opened
    // without a write, which a full disk would refuse.
    let existing = database.begin_read().map_err(from_transaction)?.open_table(RECORDS).map(drop);
    if let Err(TableError::TableDoesNotExist(_)) = existing {
        let transaction = database.begin_write().map_err(from_transaction)?;
        drop(transaction.open_table(RECORDS).map_err(from_table)?);
        transaction.commit().map_err(from_commit)?;
    }
    sync_folder(folder)?;
    Ok(Box::new(Redb { database, path: path.to_owned() }))
}

impl KeyValue for Redb {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let transaction = self.database.begin_read().map_err(from_transaction)?;
        let table = transaction.open_table(RECORDS).map_err(from_table)?;
        Ok(table.get(key).map_err(from_storage)?.map(|value| value.value().to_vec()))
    }

    fn scan(&self, range: &Range, visit: Visitor<'_>) -> Result<(), KvError> {
        if range.is_void() {
            return Ok(());
        }
        let transaction = self.database.begin_read().map_err(from_transaction)?;
        let table = transaction.open_table(RECORDS).map_err(from_table)?;
        for record in table.range::<&[u8]>(range.bounds()).map_err(from_storage)? {
            let (key, value) = record.map_err(from_storage)?;
            if let ControlFlow::Break(()) = visit(key.value(), value.value()) {
                break;
            }
        }
        Ok(())
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), KvError> {
        let mut transaction = self.database.begin_write().map_err(from_transaction)?;
        transaction
            .set_durability(Durability::Immediate)
            .map_err(|error| KvError::Damaged(error.to_string()))?;
        {
            let mut table = transaction.open_table(RECORDS).map_err(from_table)?;
            for (key, value) in batch.iter() {
                match value {
                    Some(value) => drop(table.insert(key, value).map_err(from_storage)?),
                    None => drop(table.remove(key).map_err(from_storage)?),
                }
            }
        }
        transaction.commit().map_err(from_commit)
    }

    fn size(&self) -> Result<u64, KvError> {
        Ok(std::fs::metadata(&self.path).map_err(KvError::from_io)?.len())
    }
}

fn from_storage(error: StorageError) -> KvError {
    match error {
        StorageError::Io(error) => KvError::from_io(error),
        // Said of a database that met an I/O error before: the same cure, open it anew.
        StorageError::PreviousIo => KvError::Io(std::io::Error::other("an earlier write failed")),
        other => KvError::Damaged(other.to_string()),
    }
}

fn from_database(error: DatabaseError) -> KvError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => KvError::Busy,
        DatabaseError::Storage(error) => from_storage(error),
        other => KvError::Damaged(other.to_string()),
    }
}

fn from_transaction(error: TransactionError) -> KvError {
    match error {
        TransactionError::Storage(error) => from_storage(error),
        other => KvError::Damaged(other.to_string()),
    }
}

fn from_table(error: TableError) -> KvError {
    match error {
        TableError::Storage(error) => from_storage(error),
        other => KvError::Damaged(other.to_string()),
    }
}

fn from_commit(error: CommitError) -> KvError {
    match error {
        CommitError::Storage(error) => from_storage(error),
        other => KvError::Damaged(other.to_string()),
    }
}
