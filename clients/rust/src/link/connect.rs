//! The connection: in plain text, over TLS, or as the options say.

use std::error::Error;
use std::sync::Arc;

use lapin::runtime::default_runtime;
use lapin::tcp::{AMQPUriTcpExt, RustlsConnector};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::options::Options;

pub(super) async fn connect(
    options: &Options,
    uri: AMQPUri,
) -> Result<Connection, Box<dyn Error + Send + Sync>> {
    if let Some(connect) = &options.connector {
        return connect().await;
    }
    let properties = ConnectionProperties::default().with_connection_name(options.name.as_str().into());
    if uri.scheme == AMQPScheme::AMQP {
        return Ok(Connection::connect_uri(uri, properties).await?);
    }
    let config = match &options.tls {
        Some(config) => Arc::clone(config),
        None => Arc::new(trusting_this_machine()?),
    };
    let (connector, name) = (RustlsConnector::from(config), uri.authority.host.clone());
    let connected = Connection::connector(
        uri,
        default_runtime()?,
        async move |mut uri, runtime| {
            // TCP alone: the library's own TLS takes no configuration of ours.
            uri.scheme = AMQPScheme::AMQP;
            Ok(uri.connect_async(&runtime).await?.into_rustls(&connector, &name).await?)
        },
        properties,
    );
    Ok(connected.await?)
}

/// With the process's own provider of cryptography, if it has chosen one.
fn trusting_this_machine() -> Result<ClientConfig, rustls::Error> {
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(ring::default_provider()));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_platform_verifier()?.with_no_client_auth())
}
