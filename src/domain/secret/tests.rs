use super::*;

fn ring(ids: &[&str]) -> (KeyRing, String) {
    let keys: Vec<String> = ids.iter().map(|id| KeyRing::generate(id).expose_secret().to_owned()).collect();
    let text = keys.join(", ");
    (KeyRing::parse(&text).unwrap(), text)
}

fn at(place: &str) -> Binding {
    Binding::new("table", place).in_format_1(place)
}

#[test]
fn what_was_sealed_opens_in_its_place_alone() {
    let (ring, _) = ring(&["k1"]);
    let sealed = ring.seal(&"s3cret".into(), at("token_entry/1"));
    assert!(!sealed.bytes.windows(6).any(|window| window == b"s3cret"));
    let opened = ring.open(&sealed.key_id, &sealed.bytes, at("token_entry/1")).unwrap();
    assert_eq!(opened.expose_secret(), "s3cret");
    let elsewhere = ring.open(&sealed.key_id, &sealed.bytes, at("token_entry/2")).unwrap_err();
    assert_eq!(elsewhere, OpenError::Tampered("k1".into()));
}

#[test]
fn every_changed_or_missing_byte_is_found() {
    let (ring, _) = ring(&["k1"]);
    let sealed = ring.seal(&"s3cret".into(), at("here"));
    for position in 0..sealed.bytes.len() {
        let mut changed = sealed.bytes.clone();
        changed[position] ^= 1;
        assert!(ring.open("k1", &changed, at("here")).is_err(), "byte {position} changed");
        assert!(ring.open("k1", &sealed.bytes[..position], at("here")).is_err(), "cut at {position}");
    }
}

#[test]
fn the_first_key_seals_and_older_ones_still_open() {
    let (old, old_text) = ring(&["old"]);
    let sealed = old.seal(&"s3cret".into(), at("here"));
    let (_, new_text) = ring(&["new"]);
    let rotated = KeyRing::parse(&format!("{new_text},{old_text}")).unwrap();
    assert_eq!(rotated.open(&sealed.key_id, &sealed.bytes, at("here")).unwrap().expose_secret(), "s3cret");
    assert_eq!(rotated.seal(&"x".into(), at("here")).key_id, "new");
    let dropped = KeyRing::parse(&new_text).unwrap();
    let error = dropped.open(&sealed.key_id, &sealed.bytes, at("here")).unwrap_err();
    assert_eq!(error, OpenError::UnknownKey("old".into()));
}

#[test]
fn a_wrong_key_setting_is_named_without_its_material() {
    let good = KeyRing::generate("a").expose_secret().to_owned();
    assert_eq!(KeyRing::parse(" , ").unwrap_err(), KeyRingError::Empty);
    assert_eq!(KeyRing::parse("nocolon").unwrap_err(), KeyRingError::Shape { position: 1 });
    assert_eq!(KeyRing::parse(&format!("{good},b c:x")).unwrap_err(), KeyRingError::Shape { position: 2 });
    assert_eq!(KeyRing::parse("a:c2hvcnQ=").unwrap_err(), KeyRingError::Material { id: "a".into() });
    assert_eq!(
        KeyRing::parse(&format!("{good},{good}")).unwrap_err(),
        KeyRingError::Duplicate { id: "a".into() }
    );
}

#[test]
fn debug_of_a_ring_shows_ids_alone() {
    let (ring, text) = ring(&["k1", "k2"]);
    assert_eq!(format!("{ring:?}"), r#"["k1", "k2"]"#);
    assert!(!format!("{ring:?}").contains(text.split(':').nth(1).unwrap()));
}

#[test]
fn a_fingerprint_tells_secrets_apart_and_does_not_contain_them() {
    let one = fingerprint(&"refresh-1".into());
    assert_eq!(one.len(), 32);
    assert_eq!(one, fingerprint(&"refresh-1".into()));
    assert_ne!(one, fingerprint(&"refresh-2".into()));
}

#[test]
fn every_clone_seals_with_the_key_that_was_chosen_last() {
    let (ring, _) = ring(&["new", "old"]);
    let clone = ring.clone();
    assert_eq!(clone.seal(&"x".into(), at("here")).key_id, "new");
    ring.seal_with(1);
    assert_eq!(clone.seal(&"x".into(), at("here")).key_id, "old");
    let mut body = *b"body";
    assert_eq!(clone.seal_body(&mut body, at("here")).0, "old");
}

#[test]
fn the_check_of_a_key_tells_keys_of_one_id_apart() {
    let (one, text) = ring(&["k1"]);
    let (other, _) = ring(&["k1"]);
    let check = |ring: &KeyRing| ring.keys()[0].check().to_owned();
    assert_eq!(check(&one), check(&KeyRing::parse(&text).unwrap()));
    assert_ne!(check(&one), check(&other));
    assert_eq!(check(&one).len(), 16);
}

#[test]
fn a_key_is_in_memory_once_however_many_parts_have_the_ring() {
    let (ring, _) = ring(&["k1", "k2"]);
    assert!(std::ptr::eq(ring.keys(), ring.clone().keys()));
}

#[test]
fn what_is_sealed_for_one_deployment_opens_in_no_other() {
    let (ring, _) = ring(&["k1"]);
    let other = ring.clone().of_deployment("other", false);
    let sealed = ring.seal(&"s3cret".into(), at("here"));
    assert_eq!(other.open("k1", &sealed.bytes, at("here")).unwrap_err(), OpenError::Tampered("k1".into()));
    let code = ring.mac("k1", at("here")).unwrap();
    assert_eq!(other.check_mac("k1", &code, at("here")), Err(OpenError::Tampered("k1".into())));
}

#[test]
fn format_1_is_opened_where_it_is_accepted_and_outside_of_the_database_always() {
    let (refusing, _) = ring(&["k1"]);
    let accepting = refusing.clone().of_deployment("any", true);
    refusing.seal_in(Format::One);
    let sealed = refusing.seal(&"s3cret".into(), at("here")).bytes;
    assert_eq!(Format::of(&sealed), Some(Format::One));
    assert_eq!(refusing.open("k1", &sealed, at("here")).unwrap_err(), OpenError::Format1("k1".into()));
    assert_eq!(accepting.open("k1", &sealed, at("here")).unwrap().expose_secret(), "s3cret");
    let elsewhere = accepting.open("k1", &sealed, at("there")).unwrap_err();
    assert_eq!(elsewhere, OpenError::Tampered("k1".into()));
    let outside = || Binding::new("queue", "here").also_in_format_1("here");
    assert_eq!(refusing.open("k1", &sealed, outside()).unwrap().expose_secret(), "s3cret");
    // Its first byte does not make it one of another format.
    let mut renamed = sealed;
    renamed[0] = Format::Two.byte();
    assert_eq!(accepting.open("k1", &renamed, at("here")).unwrap_err(), OpenError::Tampered("k1".into()));
    refusing.seal_in(Format::Two);
    let mut renamed = refusing.seal(&"s3cret".into(), at("here")).bytes;
    renamed[0] = Format::One.byte();
    assert_eq!(accepting.open("k1", &renamed, at("here")).unwrap_err(), OpenError::Tampered("k1".into()));
    renamed[0] = 3;
    assert_eq!(accepting.open("k1", &renamed, at("here")).unwrap_err(), OpenError::Tampered("k1".into()));
}

#[test]
fn a_code_is_that_of_its_values_and_its_key_alone() {
    let (ring, _) = ring(&["k1", "k2"]);
    let values = || Binding::new("table", "column").optional_number(Some(1)).optional_text(None);
    let code = ring.mac("k1", values()).unwrap();
    assert_eq!(ring.check_mac("k1", &code, values()), Ok(()));
    let tampered = |key: &str| Err(OpenError::Tampered(key.into()));
    assert_eq!(ring.check_mac("k2", &code, values()), tampered("k2"));
    assert_eq!(ring.check_mac("k1", &code, values().number(1)), tampered("k1"));
    assert_eq!(ring.check_mac("k1", &code[1..], values()), tampered("k1"));
    assert_eq!(ring.check_mac("k1", &[], values()), tampered("k1"));
    assert_eq!(ring.check_mac("k3", &code, values()), Err(OpenError::UnknownKey("k3".into())));
}
