use std::time::Duration;

use tokio::io::AsyncBufReadExt;

use super::*;

/// A server that sends every byte back.
async fn start_echo() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reads, mut writes) = stream.split();
                let _ = tokio::io::copy(&mut reads, &mut writes).await;
            });
        }
    });
    address
}

async fn connect(proxy: &FaultProxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.expect("connect to the proxy")
}

async fn echo(stream: &mut TcpStream, line: &str) -> String {
    stream.write_all(format!("{line}\n").as_bytes()).await.expect("write");
    read_line(stream).await
}

async fn read_line(stream: &mut TcpStream) -> String {
    let mut line = String::new();
    tokio::io::BufReader::new(stream).read_line(&mut line).await.expect("read");
    line.trim_end().to_owned()
}

/// Whether the other side has ended this connection, by whatever means.
async fn is_cut(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    matches!(within("the connection to end", PATIENCE, stream.read(&mut byte)).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn a_cut_ends_the_connections_of_now_and_lets_new_ones_work() {
    let proxy = FaultProxy::start(&start_echo().await).await;
    let (mut first, mut second) = (connect(&proxy).await, connect(&proxy).await);
    assert_eq!(echo(&mut first, "one").await, "one");
    assert_eq!(echo(&mut second, "two").await, "two");
    assert_eq!(proxy.connections(), 2);
    proxy.cut_all();
    assert!(is_cut(&mut first).await && is_cut(&mut second).await);
    assert_eq!(echo(&mut connect(&proxy).await, "three").await, "three");
}

#[tokio::test]
async fn refused_connections_end_at_once_and_old_ones_live_on() {
    let proxy = FaultProxy::start(&start_echo().await).await;
    let mut old = connect(&proxy).await;
    assert_eq!(echo(&mut old, "one").await, "one");
    proxy.refuse();
    assert!(is_cut(&mut connect(&proxy).await).await);
    assert_eq!(echo(&mut old, "two").await, "two");
    proxy.accept();
    assert_eq!(echo(&mut connect(&proxy).await, "three").await, "three");
}

#[tokio::test]
async fn a_frozen_network_loses_nothing() {
    let proxy = FaultProxy::start(&start_echo().await).await;
    let mut stream = connect(&proxy).await;
    assert_eq!(echo(&mut stream, "one").await, "one");
    proxy.freeze();
    let held = tokio::time::timeout(Duration::from_millis(100), echo(&mut stream, "two")).await;
    assert!(held.is_err(), "a byte got through");
    proxy.thaw();
    assert_eq!(read_line(&mut stream).await, "two");
}

#[tokio::test]
async fn a_cut_ends_frozen_connections_too() {
    let proxy = FaultProxy::start(&start_echo().await).await;
    let mut stream = connect(&proxy).await;
    assert_eq!(echo(&mut stream, "one").await, "one");
    proxy.freeze();
    stream.write_all(b"two\n").await.expect("write");
    proxy.cut_all();
    assert!(is_cut(&mut stream).await);
}

#[tokio::test]
async fn a_url_keeps_everything_but_its_server() {
    let proxy = FaultProxy::start_for_url("amqp://guest:guest@127.0.0.1/%2f", 5672).await;
    let expected = format!("amqp://guest:guest@127.0.0.1:{}/%2f", proxy.address().port());
    assert_eq!(proxy.url("amqp://guest:guest@127.0.0.1/%2f"), expected);
    let expected = format!("postgres://me@127.0.0.1:{}/data", proxy.address().port());
    assert_eq!(proxy.url("postgres://me@127.0.0.1:5432/data"), expected);
}

#[tokio::test]
async fn the_proxy_ends_with_its_connections() {
    let proxy = FaultProxy::start(&start_echo().await).await;
    let mut stream = connect(&proxy).await;
    assert_eq!(echo(&mut stream, "one").await, "one");
    drop(proxy);
    assert!(is_cut(&mut stream).await);
}

#[tokio::test]
async fn a_marker_ends_the_connection_that_it_came_over_and_no_other() {
    let proxy = FaultProxy::start(&start_echo().await).await;
    let (mut hit, mut bystander) = (connect(&proxy).await, connect(&proxy).await);
    proxy.watch_for(Marker::new("marker", Then::Cut));
    assert_eq!(echo(&mut hit, "mark").await, "mark");
    assert_eq!(echo(&mut hit, "a marker").await, "a marker", "it has arrived");
    assert!(is_cut(&mut hit).await);
    assert_eq!(echo(&mut bystander, "two").await, "two");
    assert_eq!(*proxy.marked().borrow(), 1);
}

#[tokio::test]
async fn who_got_a_marker_that_mutes_is_heard_no_more() {
    let proxy = FaultProxy::start(&start_echo().await).await;
    let (mut hit, mut bystander) = (connect(&proxy).await, connect(&proxy).await);
    proxy.watch_for(Marker::new("marker", Then::Mute));
    let mut marked = proxy.marked();
    assert_eq!(echo(&mut hit, "marker, marker").await, "marker, marker", "it has arrived");
    within("both to be counted", PATIENCE, marked.wait_for(|count| *count == 2))
        .await
        .expect("the proxy lives");
    hit.write_all(b"to nobody").await.expect("it is read");
    assert_eq!(echo(&mut bystander, "two").await, "two");
    hit.shutdown().await.expect("it can end");
    let mut rest = Vec::new();
    within("its end", PATIENCE, hit.read_to_end(&mut rest)).await.expect("it ends");
    assert!(rest.is_empty(), "nothing comes back of what was said");
}

#[tokio::test]
async fn one_connection_is_silenced_and_cut_by_what_its_client_said_first() {
    let proxy = FaultProxy::start(&start_echo().await).await;
    let (mut hit, mut bystander) = (connect(&proxy).await, connect(&proxy).await);
    assert_eq!(echo(&mut hit, "I am one").await, "I am one");
    assert_eq!(echo(&mut bystander, "I am two").await, "I am two");
    proxy.silence("am one").await;
    hit.write_all(b"to nobody\n").await.expect("it is read");
    assert_eq!(echo(&mut bystander, "heard").await, "heard");
    proxy.cut_silent();
    let mut rest = Vec::new();
    let _ = within("its end", PATIENCE, hit.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "nothing comes back of what was said");
    proxy.cut("am two").await;
    assert!(is_cut(&mut bystander).await);
}
