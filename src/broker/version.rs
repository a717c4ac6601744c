//! What a broker says of itself before anybody logs in. The client library keeps that to itself.

use std::sync::Arc;

use lapin::protocol::connection::AMQPMethod;
use lapin::protocol::{AMQPClass, parse_class};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::settings::Broker;

/// AMQP 0-9-1, section 4.2.2.
const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\0\0\x09\x01";

/// Bytes. The first frame of RabbitMQ has some 500.
const LONGEST_FRAME: u32 = 64 * 1024;

/// Characters of a name or a version.
const LONGEST_WORD: usize = 60;

/// Product and version, as `RabbitMQ 4.0.5`. None: the broker cannot be asked, or does not say.
pub async fn version(settings: &Broker) -> Option<String> {
    let urls = settings.nodes.urls();
    let share = settings.connect_timeout / u32::try_from(urls.len()).ok()?.max(1);
    for url in urls {
        let Ok(uri) = url.expose_secret().parse() else { continue };
        if let Ok(Some(version)) = timeout(share, ask(&uri)).await {
            return Some(version);
        }
    }
    None
}

async fn ask(uri: &AMQPUri) -> Option<String> {
    let host = uri.authority.host.as_str();
    let stream = TcpStream::connect((host, uri.authority.port)).await.ok()?;
    match uri.scheme {
        AMQPScheme::AMQP => said_by(stream).await,
        AMQPScheme::AMQPS => {
            let crypto = Arc::new(rustls::crypto::ring::default_provider());
            let config =
                rustls::ClientConfig::builder_with_provider(crypto).with_safe_default_protocol_versions();
            let config = config.ok()?.with_platform_verifier().ok()?.with_no_client_auth();
            let name = ServerName::try_from(host.to_owned()).ok()?;
            said_by(TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?).await
        }
    }
}

async fn said_by(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<String> {
    stream.write_all(PROTOCOL_HEADER).await.ok()?;
    // Section 2.3.5: type, channel and size of the frame.
    let (kind, channel) = (stream.read_u8().await.ok()?, stream.read_u16().await.ok()?);
    let size = stream.read_u32().await.ok()?;
    if (kind, channel) != (1, 0) || size > LONGEST_FRAME {
        return None;
    }
    let mut payload = vec![0; usize::try_from(size).ok()?];
    stream.read_exact(&mut payload).await.ok()?;
    let (_, AMQPClass::Connection(AMQPMethod::Start(start))) = parse_class(payload.as_slice()).ok()? else {
        return None;
    };
    let word = |name| word(&start.server_properties, name);
    Some(format!("{} {}", word("product")?, word("version")?))
}

fn word(properties: &FieldTable, name: &str) -> Option<String> {
    let text = match properties.inner().get(name)? {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.to_string(),
        _ => return None,
    };
    Some(text.chars().filter(|char| !char.is_control()).take(LONGEST_WORD).collect())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn said(frame: &[u8]) -> Option<String> {
        let (ours, mut theirs) = duplex(1024);
        theirs.write_all(frame).await.unwrap();
        let mut heard = [0; 8];
        let said = tokio::join!(said_by(ours), theirs.read_exact(&mut heard)).0;
        assert_eq!(&heard, PROTOCOL_HEADER);
        said
    }

    #[tokio::test]
    async fn product_and_version_are_what_the_first_frame_says() {
        let mut payload =
            b"\0\x0a\0\x0a\0\x09\0\0\0\x28\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x064.0\n.5"
                .to_vec();
        payload.extend_from_slice(b"\0\0\0\x05PLAIN\0\0\0\x05en_US");
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&[1, 0, 0], &size[..], &payload, &[0xce]].concat();
        assert_eq!(said(&frame).await.as_deref(), Some("RabbitMQ 4.0.5"));
    }

    #[tokio::test]
    async fn another_program_s_words_are_no_version() {
        for words in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            b"AMQP\0\0\x09\x01",
            b"\x01\0\0\xff\xff\xff\xff",
            b"\x01\0\0\0\0\0\x01x",
        ] {
            assert_eq!(said(words).await, None, "{words:?}");
        }
    }
}
