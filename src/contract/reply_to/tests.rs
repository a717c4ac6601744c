use proptest::prelude::*;

use super::*;

/// As RabbitMQ 3.10.8 delivered it; 4.0 and 4.3 write the same.
const REAL: &str = "amq.rabbitmq.reply-to.g1h2AA1yZXBseUA5MjQ4ODg0AAAEAQAAAABrDD1y.64LuEJop/bqb1SVYwzY9DA==";

fn read(name: &str) -> Result<ReplyTo, UnfitReplyTo> {
    ReplyTo::read(name, "tk")
}

/// `amq.rabbitmq.reply-to.` with this term and this key.
fn direct(term: &[u8], key: &[u8]) -> String {
    format!("{DIRECT_REPLY_TO}.{}.{}", BASE64.encode(term), BASE64.encode(key))
}

/// The term that [`REAL`] holds, and its key.
fn real() -> (Vec<u8>, Vec<u8>) {
    let (term, key) = REAL[DIRECT_REPLY_TO.len() + 1..].split_once('.').unwrap();
    (BASE64.decode(term).unwrap(), BASE64.decode(key).unwrap())
}

fn term_of(node: &[u8]) -> Vec<u8> {
    let len = u16::try_from(node.len()).unwrap().to_be_bytes();
    [&[131, 88, 118], &len[..], node, &[0; 12]].concat()
}

#[test]
fn a_queue_of_the_requesters_is_taken() {
    for name in ["r", "replies", "tk2.token-stores", "tk-replies", "TK", "t", "é…", "a b", "amq", "xamq.y"]
    {
        assert_eq!(read(name).map(|taken| taken.as_str().to_owned()).as_deref(), Ok(name));
        assert!(matches!(read(name), Ok(ReplyTo::Queue(_))), "{name}");
    }
}

#[test]
fn every_queue_under_our_prefix_is_refused_whether_it_is_there_or_not() {
    for rest in [
        "",
        ".",
        ".token-requests",
        ".workspace-starts",
        ".token-stores",
        ".token-stores.7",
        ".parked-pairs",
        ".dead-letters",
        ".dead-letters.in-use",
        ".suspects",
        ".isolated",
        ".not-there-yet",
    ] {
        assert_eq!(read(&format!("tk{rest}")), Err(UnfitReplyTo::Ours), "{rest}");
    }
    assert_eq!(ReplyTo::read("a.b.token-stores", "a.b"), Err(UnfitReplyTo::Ours));
    assert_eq!(ReplyTo::read("a.b.token-stores", "a"), Err(UnfitReplyTo::Ours));
    assert!(ReplyTo::read("a.bc", "a.b").is_ok());
}

#[test]
fn what_is_the_brokers_or_no_name_is_refused_with_what_to_do() {
    for (name, why) in [
        ("amq.gen-JzTY20BRgKO-HjmUJj0wLg", UnfitReplyTo::Reserved),
        ("amq.", UnfitReplyTo::Reserved),
        ("amq.rabbitmq.trace", UnfitReplyTo::Reserved),
        ("amq.rabbitmq.reply-to-and-more", UnfitReplyTo::Reserved),
        ("amq.rabbitmq.reply-to", UnfitReplyTo::Bare),
        ("amq.rabbitmq.reply-to.", UnfitReplyTo::Forged),
        ("amq.rabbitmq.reply-to..", UnfitReplyTo::Forged),
        ("amq.rabbitmq.reply-to.g1h2AA", UnfitReplyTo::Forged),
        ("a\0b", UnfitReplyTo::Unprintable),
        ("a\nb", UnfitReplyTo::Unprintable),
        ("a\u{7f}", UnfitReplyTo::Unprintable),
        ("a\u{9b}b", UnfitReplyTo::Unprintable),
        ("a\u{202e}b", UnfitReplyTo::Unprintable),
        ("a\u{2066}b", UnfitReplyTo::Unprintable),
        ("a\u{fffd}", UnfitReplyTo::Unprintable),
        ("amq.rabbitmq.reply-to.\u{1b}", UnfitReplyTo::Unprintable),
    ] {
        assert_eq!(read(name), Err(why), "{name:?}");
        assert!(!why.to_string().contains('\u{1b}'));
    }
    assert!(read(&"n".repeat(255)).is_ok());
    assert_eq!(read(&"n".repeat(256)), Err(UnfitReplyTo::TooLong));
    assert_eq!(read(&"é".repeat(128)), Err(UnfitReplyTo::TooLong));
}

#[test]
fn a_direct_reply_to_of_the_brokers_is_taken() {
    assert!(matches!(read(REAL), Ok(ReplyTo::Direct(_))));
    let (term, key) = real();
    assert_eq!(direct(&term, &key), REAL);
    for node in ["reply@0", "reply@134217727"] {
        assert!(matches!(read(&direct(&term_of(node.as_bytes()), &key)), Ok(ReplyTo::Direct(_))), "{node}");
    }
    // The short form of an atom, which Erlang itself prefers.
    let short = [&[131, 88, 119, 13], b"reply@9248884".as_slice(), &[0; 12]].concat();
    assert!(matches!(read(&direct(&short, &key)), Ok(ReplyTo::Direct(_))));
}

#[test]
fn one_that_the_broker_did_not_write_is_refused() {
    let (term, key) = real();
    for node in [
        "",
        "reply",
        "reply@",
        "reply@-1",
        "reply@+1",
        "reply@01",
        "reply@134217728",
        "reply@1x",
        "rabbit@host",
        "Reply@1",
    ] {
        assert_eq!(read(&direct(&term_of(node.as_bytes()), &key)), Err(UnfitReplyTo::Forged), "{node}");
    }
    // Other terms for a process, over which one broker or another ends the connection.
    let with = |tag: u8, at: usize| {
        let mut other = term.clone();
        other[at] = tag;
        direct(&other, &key)
    };
    for (tag, at) in [(130, 0), (103, 1), (90, 1), (100, 2), (115, 2), (119, 2)] {
        assert_eq!(read(&with(tag, at)), Err(UnfitReplyTo::Forged), "{tag} at {at}");
    }
    for key in [&key[..15], &[key.as_slice(), b"x"].concat(), b""] {
        assert_eq!(read(&direct(&term, key)), Err(UnfitReplyTo::Forged), "a key of {} bytes", key.len());
    }
    for odd in [
        format!("{REAL}.x"),
        format!("{REAL}="),
        format!("{REAL} "),
        REAL.trim_end_matches('=').to_owned(),
        REAL.replace('/', "_"),
        // The last four bits of the key stand for nothing; here they are not 0.
        REAL.replace("DA==", "DB=="),
        REAL.replace(".64Lu", "..64Lu"),
    ] {
        assert_eq!(read(&odd), Err(UnfitReplyTo::Forged), "{odd}");
    }
}

#[test]
fn a_bit_that_flips_in_its_structure_is_found() {
    let (term, key) = real();
    // Version, tags, length and the name of the node; behind them stand numbers, any of which may be right.
    let structure = 5 + b"reply@".len();
    for bit in 0..structure * 8 {
        let mut flipped = term.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&direct(&flipped, &key)), Err(UnfitReplyTo::Forged), "bit {bit}");
    }
    for len in 0..term.len() {
        assert_eq!(read(&direct(&term[..len], &key)), Err(UnfitReplyTo::Forged), "cut at {len}");
    }
    assert_eq!(read(&direct(&[term.as_slice(), &[0]].concat(), &key)), Err(UnfitReplyTo::Forged), "one more");
    for len in DIRECT_REPLY_TO.len() + 1..REAL.len() {
        assert_eq!(read(&REAL[..len]), Err(UnfitReplyTo::Forged), "the name cut at {len}");
    }
}

/// Builds the one right name from what stands in a term, as RabbitMQ does.
fn rebuilt(name: &str) -> Option<String> {
    let (term, key) = name.strip_prefix(DIRECT_REPLY_TO)?.strip_prefix('.')?.split_once('.')?;
    let (term, key) = (BASE64.decode(term).ok()?, BASE64.decode(key).ok()?);
    let hash_at = term.windows(6).position(|window| window == b"reply@")? + 6;
    let numbers_at = term.len().checked_sub(12)?;
    let hash: u32 = str::from_utf8(term.get(hash_at..numbers_at)?).ok()?.parse().ok()?;
    let node = format!("reply@{hash}");
    let mut right = term_of(node.as_bytes());
    let at = right.len() - 12;
    right[at..].copy_from_slice(&term[numbers_at..]);
    let short =
        [&[131, 88, 119, u8::try_from(node.len()).ok()?], node.as_bytes(), &term[numbers_at..]].concat();
    [right, short].into_iter().map(|term| direct(&term, &key)).find(|right| right == name)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let (term, _) = real();
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..80),
        // The right beginning, so that more than the first byte is tried.
        (0..=term.len(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(move |(len, rest)| [
            &term[..len],
            &rest
        ]
        .concat()),
        (any::<[u8; 12]>(), 0..1_u32 << 28, any::<bool>()).prop_map(|(numbers, hash, short)| {
            let node = format!("reply@{hash}");
            let len = u8::try_from(node.len()).unwrap();
            let head = if short { vec![131, 88, 119, len] } else { vec![131, 88, 118, 0, len] };
            [head.as_slice(), node.as_bytes(), &numbers].concat()
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn whatever_bytes_come_only_what_the_broker_would_write_is_a_direct_reply_to(
        term in bytes(),
        key in prop_oneof![Just(vec![7; 16]), proptest::collection::vec(any::<u8>(), 0..20)],
    ) {
        let name = direct(&term, &key);
        if let Ok(taken) = read(&name) {
            prop_assert!(matches!(taken, ReplyTo::Direct(_)));
            prop_assert_eq!(rebuilt(&name), Some(name));
            prop_assert_eq!(key.len(), 16);
        }
    }

    #[test]
    fn whatever_text_comes_nothing_of_ours_and_nothing_unprintable_is_taken(name in "(tk|tk\\.|amq\\.|)\\PC{0,20}.{0,20}") {
        if let Ok(taken) = read(&name) {
            prop_assert_eq!(taken.as_str(), name.as_str());
            prop_assert!(!name.starts_with("tk.") && name != "tk" && name.len() <= 255);
            prop_assert!(!name.chars().any(char::is_control));
            prop_assert!(!name.starts_with("amq.") || matches!(taken, ReplyTo::Direct(_)));
        }
    }
}
