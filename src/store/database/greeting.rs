//! Which kind of database server listens at an address, told by its first words. Nobody logs in.

use std::time::Duration;

use sea_orm::DatabaseBackend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// PostgreSQL's request for TLS, which it answers with one letter:
/// <https://www.postgresql.org/docs/current/protocol-message-formats.html>
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The kind of server. None: nobody listens, or it is neither.
pub(super) async fn kind_of_server(host: &str, port: u16) -> Option<DatabaseBackend> {
    let mut stream = timeout(PATIENCE, TcpStream::connect((host, port))).await.ok()?.ok()?;
    // MariaDB and MySQL speak first: the length of a packet, its number, and then the version 10 of the protocol or an error
    // (<https://mariadb.com/kb/en/connection/>).
    let mut packet = [0; 5];
    match timeout(PATIENCE, stream.read_exact(&mut packet)).await {
        Ok(Ok(_)) => matches!(packet, [_, _, 0, 0, 10 | 0xff]).then_some(DatabaseBackend::MySql),
        Ok(Err(_)) => None,
        // It waits for us.
        Err(_) => {
            stream.write_all(&SSL_REQUEST).await.ok()?;
            let answer = timeout(PATIENCE, stream.read_u8()).await.ok()?.ok()?;
            matches!(answer, b'S' | b'N').then_some(DatabaseBackend::Postgres)
        }
    }
}
