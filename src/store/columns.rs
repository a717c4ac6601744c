//! A group as PostgreSQL's `unnest` takes it: one array a column. An array of the driver holds no NULL; what can be absent
//! is given as a value that stands for nothing, and the statement turns that back with `NULLIF`.

use sea_orm::Value;
use sea_orm::sea_query::ArrayType;

use crate::clock::Timestamp;

/// A number that stands for none: a time before any other.
pub(super) const NO_NUMBER: i64 = i64::MIN;

pub(super) fn numbers<T>(group: &[T], number: impl Fn(&T) -> i64) -> Value {
    column(ArrayType::BigInt, group.iter().map(|item| number(item).into()))
}

pub(super) fn times<T>(group: &[T], time: impl Fn(&T) -> Option<Timestamp>) -> Value {
    numbers(group, |item| time(item).map_or(NO_NUMBER, Timestamp::as_millis))
}

pub(super) fn texts<'a, T>(group: &'a [T], text: impl Fn(&'a T) -> &'a str) -> Value {
    column(ArrayType::String, group.iter().map(|item| text(item).into()))
}

pub(super) fn bytes<'a, T>(group: &'a [T], bytes: impl Fn(&'a T) -> &'a [u8]) -> Value {
    column(ArrayType::Bytes, group.iter().map(|item| bytes(item).into()))
}

pub(super) fn flags<T>(group: &[T], flag: impl Fn(&T) -> bool) -> Value {
    column(ArrayType::Bool, group.iter().map(|item| flag(item).into()))
}

fn column(kind: ArrayType, values: impl Iterator<Item = Value>) -> Value {
    Value::Array(kind, Some(Box::new(values.collect())))
}
