//! Holds `api.proto` against `api.tsv`, the table of the contract: a line of the table for each element, both ways.
//!
//! Lines are `package NAME`, `rpc SERVICE NAME INPUT OUTPUT`, `message NAME NUMBER TYPE FIELD` (`-` thrice for a message
//! without fields) and `enum NAME NUMBER VALUE`, tab-separated. A type carries `repeated`, `map<K,V>`, and an rpc's side
//! `stream`, as in a .proto; `deprecated` follows the field's name.

use std::collections::{BTreeMap, BTreeSet};

use protox::prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, field_descriptor_proto,
};

const PROTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");

fn api() -> FileDescriptorProto {
    let mut files = protox::compile(["api.proto"], [PROTO]).expect("api.proto compiles").file;
    assert_eq!(files.len(), 1, "one file, no imports");
    files.remove(0)
}

/// `.runtime.v1.A.B` as the table writes it: `A.B`.
fn short(type_name: &str) -> String {
    type_name.trim_start_matches(".runtime.v1.").to_owned()
}

fn scalar(field: &FieldDescriptorProto) -> String {
    use field_descriptor_proto::Type;
    match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()),
        Type::String => "string".into(),
        Type::Bytes => "bytes".into(),
        Type::Bool => "bool".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Uint32 => "uint32".into(),
        Type::Uint64 => "uint64".into(),
        Type::Double => "double".into(),
        other => panic!("{}: the contract has no {other:?}", field.name()),
    }
}

/// The type as a .proto writes it. A map is a repeated field of a nested entry message in the descriptor.
fn written_type(owner: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    use field_descriptor_proto::Label;
    assert_eq!(field.oneof_index, None, "{}: the contract has neither oneof nor optional", field.name());
    if field.label() != Label::Repeated {
        return scalar(field);
    }
    let entry =
        owner.nested_type.iter().find(|m| is_map_entry(m) && field.type_name().ends_with(&format!(".{}", m.name())));
    match entry {
        Some(entry) => format!("map<{},{}>", scalar(&entry.field[0]), scalar(&entry.field[1])),
        None => format!("repeated {}", scalar(field)),
    }
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|o| o.map_entry())
}

fn enum_lines(name: &str, e: &EnumDescriptorProto, lines: &mut Vec<String>) {
    lines.extend(e.value.iter().map(|v| format!("enum\t{name}\t{}\t{}", v.number(), v.name())));
}

fn lines_of(file: &FileDescriptorProto) -> Vec<String> {
    let mut lines = vec![format!("package\t{}", file.package())];
    for service in &file.service {
        for m in &service.method {
            let side = |streams: bool, name: &str| format!("{}{}", if streams { "stream " } else { "" }, short(name));
            let (input, output) =
                (side(m.client_streaming(), m.input_type()), side(m.server_streaming(), m.output_type()));
            lines.push(format!("rpc\t{}\t{}\t{input}\t{output}", service.name(), m.name()));
        }
    }
    for e in &file.enum_type {
        enum_lines(e.name(), e, &mut lines);
    }
    for message in &file.message_type {
        let name = message.name();
        if message.field.is_empty() {
            lines.push(format!("message\t{name}\t-\t-\t-"));
        }
        for f in &message.field {
            let deprecated = if f.options.as_ref().is_some_and(|o| o.deprecated()) { " deprecated" } else { "" };
            let written = written_type(message, f);
            lines.push(format!("message\t{name}\t{}\t{written}\t{}{deprecated}", f.number(), f.name()));
        }
        for e in &message.enum_type {
            enum_lines(&format!("{name}.{}", e.name()), e, &mut lines);
        }
        assert!(message.nested_type.iter().all(is_map_entry), "{name}: the contract nests no message");
    }
    lines
}

#[test]
fn the_proto_is_the_contract_no_more_and_no_less() {
    let table: Vec<_> = include_str!("../proto/api.tsv").lines().collect();
    let lines = lines_of(&api());
    let wanted: BTreeSet<_> = table.iter().copied().collect();
    let found: BTreeSet<_> = lines.iter().map(String::as_str).collect();
    let missing: Vec<_> = wanted.difference(&found).collect();
    let surplus: Vec<_> = found.difference(&wanted).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "only in api.tsv: {missing:#?}\nonly in api.proto: {surplus:#?}");
    assert_eq!((table.len(), lines.len()), (wanted.len(), found.len()), "no line twice");
}

/// The table has no column for this option, so it is held here. (prost-types does not know it yet; reflection does.)
#[test]
fn secrets_are_marked_and_nothing_else_is() {
    let pool = protox::Compiler::new([PROTO]).unwrap().open_file("api.proto").unwrap().descriptor_pool();
    let mut marked = BTreeSet::new();
    for message in pool.all_messages().filter(|m| m.package_name() == "runtime.v1") {
        for field in message.fields() {
            if field.options().get_field_by_name("debug_redact").is_some_and(|v| v.as_bool() == Some(true)) {
                marked.insert(format!("{}.{}", message.name(), field.name()));
            }
        }
    }
    let secrets = ["password", "auth", "identity_token", "registry_token"].map(|f| format!("AuthConfig.{f}"));
    assert_eq!(marked, secrets.into());
}

/// Names by descriptor path (the field numbers of descriptor.proto, alternating with indexes) for all that needs a comment.
fn elements(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let mut names = BTreeMap::new();
    let mut add = |path: &[usize], name: String| {
        names.insert(path.iter().map(|&n| i32::try_from(n).expect("a small index")).collect(), name);
    };
    for (i, s) in file.service.iter().enumerate() {
        add(&[6, i], s.name().into());
        for (k, m) in s.method.iter().enumerate() {
            add(&[6, i, 2, k], format!("{}.{}", s.name(), m.name()));
        }
    }
    for (i, e) in file.enum_type.iter().enumerate() {
        add(&[5, i], e.name().into());
        for (k, v) in e.value.iter().enumerate() {
            add(&[5, i, 2, k], v.name().into());
        }
    }
    for (i, m) in file.message_type.iter().enumerate() {
        add(&[4, i], m.name().into());
        for (k, f) in m.field.iter().enumerate() {
            add(&[4, i, 2, k], format!("{}.{}", m.name(), f.name()));
        }
        for (k, e) in m.enum_type.iter().enumerate() {
            add(&[4, i, 4, k], format!("{}.{}", m.name(), e.name()));
            for (l, v) in e.value.iter().enumerate() {
                add(&[4, i, 4, k, 2, l], format!("{}.{}.{}", m.name(), e.name(), v.name()));
            }
        }
    }
    names
}

#[test]
fn every_element_says_what_it_means() {
    let file = api();
    let mut bare = elements(&file);
    let lines = include_str!("../proto/api.tsv").lines().count();
    assert!(bare.len() > lines, "{} elements for {lines} lines: the walk leaves something out", bare.len());
    for location in file.source_code_info.expect("source info").location {
        // A sentence: more than a word, ended by a full stop.
        let comment = location.leading_comments.unwrap_or_default();
        if comment.trim().contains(' ') && comment.trim().ends_with('.') {
            bare.remove(&location.path);
        }
    }
    assert!(bare.is_empty(), "without a comment (a sentence above it): {:#?}", bare.values());
}

/// A banner is set off by blank lines, so that it is a detached comment and reaches no element's text.
#[test]
fn banners_are_no_part_of_a_comment() {
    for location in api().source_code_info.expect("source info").location {
        let text = location.leading_comments.unwrap_or_default() + &location.trailing_comments.unwrap_or_default();
        assert!(!text.contains("-----"), "a banner runs into the comment of {:?}: {text}", location.path);
    }
}
