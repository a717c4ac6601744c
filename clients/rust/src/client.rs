//! The client: one connection, and the requests that go over it.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::events::Events;
use crate::link::{Shared, reconnect};
use crate::options::Options;
use crate::requests::{ReportRequest, StoreRequest, TokenRequest, WorkspaceRequest};

/// A client of tokenkeeper. Clones share its one connection, which is opened anew when it breaks. It ends with the last clone, and
/// so do the streams of [`events`](Self::events).
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    /// None: somebody closes the client.
    reconnecting: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    /// Connects. Needs a Tokio runtime, as all that follows does.
    ///
    /// # Errors
    /// [`Error::Options`], [`Error::Connect`], or [`Error::Broker`] and [`Error::Silent`] where the broker refuses what a publisher
    /// needs.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(options)?);
        let permits = Arc::new(Semaphore::new(shared.options.in_flight));
        let first = shared.open().await?;
        let reconnecting = Mutex::new(Some(tokio::spawn(reconnect(Arc::clone(&shared), first))));
        Ok(Self(Arc::new(Inner { shared, permits, reconnecting })))
    }

    /// Asks for a user's token for a host, as it stands in clone URLs (with its port, if it has one).
    pub fn token(&self, user: impl Into<String>, host: impl Into<String>) -> TokenRequest<'_> {
        TokenRequest::new(self, user.into(), host.into())
    }

    /// Asks for the tokens that a workspace needs to clone these repositories: 1 to 16 clone URLs.
    pub fn workspace_start(
        &self,
        workspace: impl Into<String>,
        user: impl Into<String>,
        repositories: impl IntoIterator<Item = impl Into<String>>,
    ) -> WorkspaceRequest<'_> {
        let repositories = repositories.into_iter().map(Into::into).collect();
        WorkspaceRequest::new(self, workspace.into(), user.into(), repositories)
    }

    /// Hands over the pair of a login. tokenkeeper owns it from then on.
    pub fn store(
        &self,
        user: impl Into<String>,
        host: impl Into<String>,
        access_token: impl Into<SecretString>,
    ) -> StoreRequest<'_> {
        StoreRequest::new(self, user.into(), host.into(), access_token.into())
    }

    /// Says that a host rejected this token.
    pub fn report(
        &self,
        user: impl Into<String>,
        host: impl Into<String>,
        token: &SecretString,
    ) -> ReportRequest<'_> {
        let digest = Sha256::digest(token.expose_secret().as_bytes());
        ReportRequest::new(self, user.into(), host.into(), hexadecimal(&digest))
    }

    /// The events whose name fits this pattern of a topic exchange: `#` for all, `token.*`, `provider.unavailable`. The
    /// broker's user needs the permissions for a queue of its own, and to read the exchange `PREFIX.events`. What happens after
    /// this has returned is in the stream.
    ///
    /// # Errors
    /// [`Error::Broker`]: the broker refuses it. [`Error::Silent`]: no connection came about within the options' timeout.
    pub async fn events(&self, pattern: impl Into<String>) -> Result<Events, Error> {
        Events::subscribe(Arc::clone(&self.0.shared), pattern.into()).await
    }

    /// Closes the connection, also for all clones. What is in flight ends with [`Error::Closed`].
    pub async fn close(self) {
        let link = self.0.shared.close();
        self.0.permits.close();
        let reconnecting = self.0.reconnecting.lock().take();
        if let Some(reconnecting) = reconnecting {
            reconnecting.abort();
            // So that nothing is published from here on.
            drop(reconnecting.await);
        }
        self.0.shared.pending.end_all();
        if let Some(link) = link {
            // A blocked connection cannot be closed in good order; an error while closing does not matter.
            if !link.connection.status().blocked() {
                let close = link.connection.close(200, "done".into());
                drop(self.0.shared.within("close the connection", close).await);
            }
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.shared.options
    }

    /// The right to have a request in flight.
    pub(crate) async fn permit(&self) -> Result<Arc<OwnedSemaphorePermit>, Error> {
        let permit = Arc::clone(&self.0.permits).acquire_owned().await;
        permit.map(Arc::new).map_err(|_| Error::Closed)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |four: u8| char::from_digit(four.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", self.options()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(reconnecting) = self.reconnecting.get_mut() {
            reconnecting.abort();
        }
        self.shared.close();
    }
}
