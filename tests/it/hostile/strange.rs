//! Values and headers that nobody sends by mistake.

use lapin::types::{AMQPValue, ByteArray, FieldArray, FieldTable, LongString};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any};
use proptest::sample::select;
use proptest::strategy::{BoxedStrategy, Union};
use serde_json::{Value, json};

/// What may stand in a field: right for some, for most of them not.
pub(super) fn strange_value() -> Union<BoxedStrategy<Value>> {
    let texts = vec![
        "",
        " ",
        "u\n",
        "\0",
        "\u{7f}",
        "\u{85}",
        "é",
        "\u{202e}\u{feff}",
        "http://h/",
        "h:1:2",
        "a b",
        "300",
        "2020-02-30T00:00:00Z",
        "2020-01-01T00:00:00",
        "2020-01-01",
        "9999-12-31T23:59:59Z",
        "tomorrow",
        "2020-01-01T00:00:00+01:00",
        "file:///etc/passwd",
        "'; DROP TABLE identities; --",
        "${jndi:ldap://x}",
    ];
    let numbers = vec![
        json!(0),
        json!(-1),
        json!(1),
        json!(86_400),
        json!(86_401),
        json!(1.5),
        json!(300.0),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(4_294_967_297_u64),
    ];
    let lengths = vec![255, 256, 1_000, 32_768, 32_769, 70_000];
    Union::new([
        Just(Value::Null).boxed(),
        any::<bool>().prop_map(Value::Bool).boxed(),
        select(numbers).boxed(),
        select(texts.clone()).prop_map(|text| json!(text)).boxed(),
        select(lengths).prop_map(|length| json!("x".repeat(length))).boxed(),
        any::<String>().prop_map(Value::String).boxed(),
        vec(select(texts), 0..20).prop_map(|texts| json!(texts)).boxed(),
        vec(any::<i32>(), 0..4).prop_map(|numbers| json!(numbers)).boxed(),
        Just(json!({"value": {"value": []}})).boxed(),
    ])
}

/// Headers that a worker reads, or that are large, deep or of a strange type.
pub(super) fn strange_headers() -> impl Strategy<Value = Vec<(String, AMQPValue)>> {
    let text = |bytes: Vec<u8>| AMQPValue::LongString(LongString::from(bytes));
    let mut deep = AMQPValue::Void;
    for _ in 0..60 {
        let mut table = FieldTable::default();
        table.insert("a".into(), deep);
        deep = AMQPValue::FieldTable(table);
    }
    let mut array = FieldArray::default();
    for number in 0..2_000 {
        array.push(AMQPValue::LongInt(number));
    }
    let values = vec![
        text(vec![0xff; 300]),
        text(b"00-11111111111111111111111111111111-2222222222222222-01".to_vec()),
        text(vec![b'x'; 20_000]),
        text(Vec::new()),
        AMQPValue::Boolean(true),
        // Erlang has no NaN, so the broker closes the connection of who sends one.
        AMQPValue::Double(f64::MAX),
        AMQPValue::LongLongInt(i64::MIN),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::ByteArray(ByteArray::from(vec![0xfe; 64])),
        AMQPValue::FieldArray(array),
        AMQPValue::Void,
        deep,
    ];
    let names = ["traceparent", "x-death", "x-tokenkeeper-reason", "x-delivery-count", "", "é\n", "CC"]
        .map(str::to_owned);
    let mut names = names.to_vec();
    names.push("n".repeat(255));
    vec((select(names), select(values)), 1..4)
        // The broker itself reads this one, and refuses what is no array of texts.
        .prop_map(|headers| headers.into_iter().filter(|(name, _)| name != "CC").collect())
}
