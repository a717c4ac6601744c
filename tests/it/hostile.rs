//! Fifteen thousand malformed and hostile messages among good ones: each is answered where that is possible and laid into the
//! dead letters where it belongs, the good ones are served, and the worker neither dies nor grows.
#![allow(clippy::print_stdout, reason = "the seed, the counts and the memory are told")]

mod messages;
mod oracle;
mod strange;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::Value;
use tokenkeeper::broker::dead_letters;
use tokenkeeper_testkit::queues::{TOKEN_REPORT, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};
use tokenkeeper_testkit::wait::{eventually, within};
use tokio::time::Instant;

use self::messages::{Answer, Generator, HEADER, Message};
use self::oracle::Oracle;
use crate::cli::Cli;
use crate::harness::{Dialect, Kind, WorkerProcess, World};

const HOSTILE: usize = 15_000;
/// In so many rounds; after the first two the worker has all that it needs for them.
const ROUNDS: usize = 3;
/// One good request after so many hostile messages.
const GOOD_EVERY: usize = 10;
/// How many messages are under way to the broker at once.
const PIPELINED: usize = 250;
/// So few messages wait at once that none runs out of time, and no late reply out of its five seconds, however slow the machine.
const AT_ONCE: usize = 100;
/// How much more memory the worker may hold after the last round than before it: 0.2 to 1.7 MiB were measured. A message in
/// hand is a kilobyte, so that keeping one of each would be 5.4 MiB.
const GROWTH_KIB: u64 = 5 * 1024;
/// How long nothing may happen before what is missing is looked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Users who are served as ever, each of whom logs in once.
const GOOD_USERS: usize = 10;

/// Replies, by correlation id; those without one under the empty text.
type Replies = Arc<Mutex<HashMap<String, Vec<Value>>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifteen_thousand_hostile_messages_are_refused_one_by_one_and_nothing_else_suffers() {
    let seed = seed();
    println!("HOSTILE_SEED={seed}");
    let started = Instant::now();
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("log.level", "info");
    let oracle = Oracle::from_published_schemas(&Cli::of(&world)).await;
    let worker = WorkerProcess::spawn_to_measure_memory(&world).await;
    let users: Vec<String> = (0..GOOD_USERS).map(|number| format!("good-{number}")).collect();
    for user in &users {
        world.user_with_token(user).await;
    }
    let (reply_to, replies) = collect_replies(&world).await;
    let mut generator = Generator::new(seed, &world.scm.host(), &reply_to, &users);
    let mut all = BTreeMap::new();
    let mut memory = Vec::new();
    for round in 0..ROUNDS {
        let messages: Vec<Message> = (0..HOSTILE / ROUNDS)
            .flat_map(|number| {
                let number = round * HOSTILE / ROUNDS + number;
                let good = number.is_multiple_of(GOOD_EVERY).then(|| generator.good(number));
                [Some(generator.hostile(number, &oracle)), good]
            })
            .flatten()
            .collect();
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            all.extend(publish(&world, messages.by_ref().take(AT_ONCE).collect()).await);
            settled(&world, &worker, &all, &replies).await;
        }
        // What it has allocated alone: how much of the binary is in memory is the machine's affair.
        let allocated = memory_kib(&worker, "RssAnon");
        println!("after {} messages: {allocated} KiB of {} KiB", all.len(), memory_kib(&worker, "VmRSS"));
        memory.push(allocated);
    }
    println!("at most: {} KiB; {:?}", memory_kib(&worker, "VmHWM"), started.elapsed());
    report(&all);

    check_replies(&all, &replies.lock().unwrap());
    check_dead_letters(&world, &all).await;
    let growth = memory[ROUNDS - 1].saturating_sub(memory[ROUNDS - 2]);
    println!("growth over the last round: {growth} KiB");
    assert!(growth <= GROWTH_KIB, "seed {seed}: {memory:?} KiB");
    for user in &users {
        assert_eq!(world.request(user).await["status"], "ok", "{user} is served as ever");
    }
    assert_eq!(worker.log().matches("panicked").count(), 0);
    for link in [crate::harness::links::Link::Consume, crate::harness::links::Link::Publish] {
        assert_eq!(worker.reconnects(link).await, 0, "no message costs a connection");
    }
    worker.stop(&world).await;
}

/// The same messages every time, unless somebody wants others.
fn seed() -> u64 {
    std::env::var("HOSTILE_SEED").map_or(20_200_101, |seed| seed.parse().expect("HOSTILE_SEED is a number"))
}

/// What has to become of a message that was published.
struct Expected {
    what: &'static str,
    reply: Option<(String, Answer)>,
    dead_letter: Option<Vec<u8>>,
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body: String = self
            .dead_letter
            .iter()
            .flat_map(|body| body.escape_ascii().to_string().chars().take(600).collect::<Vec<_>>())
            .collect();
        write!(f, "{} {:?} {body}", self.what, self.reply)
    }
}

async fn collect_replies(world: &World) -> (String, Replies) {
    let channel = world.broker.channel().await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = format!("{}-hostile-replies", world.broker.prefix());
    channel.queue_declare(queue.as_str().into(), exclusive, FieldTable::default()).await.unwrap();
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consume = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
    let mut consumer = consume.await.unwrap();
    let replies = Replies::default();
    let collected = Arc::clone(&replies);
    tokio::spawn(async move {
        let _channel = channel;
        while let Some(Ok(reply)) = consumer.next().await {
            let id = reply.properties.correlation_id().as_ref().map_or("", ShortString::as_str).to_owned();
            let body = serde_json::from_slice(&reply.data).expect("a reply is JSON");
            collected.lock().unwrap().entry(id).or_default().push(body);
        }
    });
    (queue, replies)
}

/// Publishes the messages, many at once, and gives back what has to become of each.
async fn publish(world: &World, messages: Vec<Message>) -> BTreeMap<i64, Expected> {
    let channel = world.broker.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let exchange = world.broker.prefix();
    let mut expected = BTreeMap::new();
    let mut confirms = Vec::new();
    for message in messages {
        let options = BasicPublishOptions::default();
        let key = message.routing_key.into();
        let properties = message.properties.clone();
        let published = channel.basic_publish(exchange.into(), key, options, &message.body, properties).await;
        confirms.push(published.expect(message.what));
        if confirms.len() == PIPELINED {
            confirmed(&mut confirms).await;
        }
        let dead_letter = message.is_refused.then_some(message.body);
        expected.insert(message.number, Expected { what: message.what, reply: message.reply, dead_letter });
    }
    confirmed(&mut confirms).await;
    expected
}

async fn confirmed(confirms: &mut Vec<lapin::PublisherConfirm>) {
    for confirm in join_all(confirms.drain(..)).await {
        assert!(confirm.unwrap().is_ack());
    }
}

/// How many messages of any type the worker has settled.
async fn count_settled(worker: &WorkerProcess) -> usize {
    let mut settled = 0;
    for kind in [TOKEN_REQUEST, WORKSPACE_START, TOKEN_STORE, TOKEN_REPORT] {
        for outcome in ["ok", "error", "dead_lettered"] {
            let series = format!("tokenkeeper_messages_total{{type=\"{kind}\",outcome=\"{outcome}\"}}");
            settled += worker.count(&series).await;
        }
    }
    settled
}

/// Waits until everything that has to come has come, and every message is settled: those that nobody would hear of lie in the
/// dead letters too. Says what is missing where it does not.
async fn settled(
    world: &World,
    worker: &WorkerProcess,
    expected: &BTreeMap<i64, Expected>,
    replies: &Replies,
) {
    let replies_due = expected.values().filter(|message| message.reply.is_some()).count();
    let letters_due = expected.values().filter(|message| message.dead_letter.is_some()).count();
    let (mut before, mut since) = ((0, 0), Instant::now());
    eventually("every message to be settled", PATIENCE * 20, async || {
        let answered = replies.lock().unwrap().values().map(Vec::len).sum::<usize>();
        let letters = world.broker.queue_depth("dead-letters").await as usize;
        if (answered, letters) != before {
            (before, since) = ((answered, letters), Instant::now());
        }
        if since.elapsed() > PATIENCE {
            println!(
                "stuck at {answered} of {replies_due} replies and {letters} of {letters_due} dead letters"
            );
            check_replies(expected, &replies.lock().unwrap());
            check_dead_letters(world, expected).await;
        }
        let all_came = answered >= replies_due && letters >= letters_due;
        // The logins of the good users came before.
        (all_came && count_settled(worker).await >= expected.len() + GOOD_USERS).then_some(())
    })
    .await;
}

fn check_replies(expected: &BTreeMap<i64, Expected>, replies: &HashMap<String, Vec<Value>>) {
    let mut due: HashMap<&str, Vec<(&str, Answer)>> = HashMap::new();
    for message in expected.values() {
        if let Some((id, answer)) = &message.reply {
            due.entry(id).or_default().push((message.what, *answer));
        }
    }
    for (id, due) in &due {
        let came = replies.get(*id).map_or(&[][..], Vec::as_slice);
        assert_eq!(came.len(), due.len(), "one reply each: {id:?} {due:?} {came:?}");
        if id.is_empty() {
            // Nobody can tell which is whose.
            let refused = came.iter().filter(|reply| is_invalid(reply)).count();
            assert_eq!(refused, due.iter().filter(|(_, answer)| *answer == Answer::Invalid).count());
            continue;
        }
        let (what, answer) = due[0];
        match answer {
            Answer::Ok => assert_eq!(came[0]["status"], "ok", "{what} {id}: {}", came[0]),
            Answer::Invalid => assert!(is_invalid(&came[0]), "{what} {id}: {}", came[0]),
            Answer::Other => assert!(!is_invalid(&came[0]), "{what} {id}: {}", came[0]),
        }
    }
    let strays: Vec<_> = replies.keys().filter(|id| !due.contains_key(id.as_str())).collect();
    assert!(strays.is_empty(), "replies to nothing: {strays:?}");
}

fn is_invalid(reply: &Value) -> bool {
    reply["status"] == "error" && reply["error"]["code"] == "invalid_request"
}

async fn check_dead_letters(world: &World, expected: &BTreeMap<i64, Expected>) {
    let mut seen = BTreeSet::new();
    let keys = world.settings().key_ring().unwrap();
    for letter in all_dead_letters(world).await {
        let number = number_of(&letter);
        let message = &expected[&number];
        let reason = letter.properties.headers().as_ref().unwrap().inner().get("x-tokenkeeper-reason");
        let unheard = ["unknown_host", "deadline_exceeded"]
            .iter()
            .any(|code| reason == Some(&AMQPValue::LongString((*code).into())));
        if unheard {
            // It is well formed, and nobody would hear that it was refused.
            let key = letter.routing_key.as_str();
            let kept = [TOKEN_STORE, TOKEN_REPORT].contains(&key) && message.reply.is_none();
            assert!(kept, "{}: {key}", message.what);
            continue;
        }
        let body = message.dead_letter.as_ref();
        let body =
            body.unwrap_or_else(|| panic!("{} {number} does not belong here: {reason:?}", message.what));
        let opened =
            dead_letters::open(Some(&keys), letter.routing_key.as_str(), &letter.properties, &letter.data);
        assert!(opened.unwrap() == *body, "{} {number}: the body as it came", message.what);
        let reason = reason.unwrap_or_else(|| panic!("{} {number} has no reason", message.what));
        assert_eq!(reason, &AMQPValue::LongString("invalid_request".into()), "{} {number}", message.what);
        assert!(seen.insert(number), "{} {number}: once", message.what);
    }
    let due = expected.iter().filter(|(_, message)| message.dead_letter.is_some());
    let missing: Vec<_> = due.filter(|(number, _)| !seen.contains(number)).collect();
    let shown: Vec<_> =
        missing.iter().take(3).map(|(number, message)| format!("{number} {message:?}")).collect();
    assert!(missing.is_empty(), "{} are missing: {shown:#?}", missing.len());
}

/// Takes out all of them at once; one by one takes longer than everything else here.
async fn all_dead_letters(world: &World) -> Vec<Delivery> {
    let count = world.broker.queue_depth("dead-letters").await as usize;
    let channel = world.broker.channel().await;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let queue = world.broker.name("dead-letters");
    let consume = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    let letters = consume.await.unwrap().take(count).map(Result::unwrap).collect::<Vec<_>>();
    within("the dead letters", PATIENCE * 4, letters).await
}

fn number_of(letter: &Delivery) -> i64 {
    match letter.properties.headers().as_ref().and_then(|headers| headers.inner().get(HEADER)) {
        Some(AMQPValue::LongLongInt(number)) => *number,
        other => panic!("a dead letter of nobody's: {other:?}"),
    }
}

/// How many there were of what.
fn report(expected: &BTreeMap<i64, Expected>) {
    let mut counts: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for message in expected.values() {
        let (sent, answered, dead) = counts.entry(message.what).or_default();
        *sent += 1;
        *answered += usize::from(message.reply.is_some());
        *dead += usize::from(message.dead_letter.is_some());
    }
    println!("{:<40} {:>6} {:>9} {:>6}", "", "sent", "answered", "dead");
    for (what, (sent, answered, dead)) in counts {
        println!("{what:<40} {sent:>6} {answered:>9} {dead:>6}");
    }
}

/// A line of `/proc/PID/status`.
fn memory_kib(worker: &WorkerProcess, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
