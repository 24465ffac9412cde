use super::*;
use proptest::prelude::*;

fn frame_of(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode_message(3, message, &mut out);
    assert_eq!(out.pop(), Some(b'\n'));
    assert!(out.len() < MAX_FRAME);
    out
}

fn any_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        any::<u32>().prop_map(|version| Request::Hello { version }),
        Just(Request::Status),
        Just(Request::Start),
        Just(Request::ReopenLog),
        any::<(u16, u16)>().prop_map(|(rows, cols)| Request::Resize { rows, cols }),
    ]
}

fn any_state() -> impl Strategy<Value = State> {
    let exit = any::<(i32, i32, bool, i64, String, String)>();
    let phase = (0..PHASES.len()).prop_map(|i| PHASES[i].0);
    (any::<(u32, Option<(u64, u32)>, i64, String, u64)>(), proptest::option::of(exit), phase).prop_map(
        |((version, process, started_at, text, log_errors), exit, phase)| State {
            version,
            phase,
            process: process.map(|(start_time, pid)| Process { start_time, pid: (pid >> 1).cast_signed().max(1) }),
            started_at,
            exit: exit.map(|(exit_code, signal, oom_killed, finished_at, reason, message)| ExitRecord {
                exit_code,
                signal,
                oom_killed,
                started_at,
                finished_at,
                reason,
                message,
            }),
            text,
            log_errors,
        },
    )
}

proptest! {
    #[test]
    fn requests_come_back(seq: u32, request in any_request()) {
        let mut out = Vec::new();
        encode_request(seq, &request, &mut out);
        prop_assert_eq!(out.pop(), Some(b'\n'));
        prop_assert_eq!(decode_request(&out), Ok((seq, request)));
    }

    #[test]
    fn states_come_back(state in any_state()) {
        let message = Message::State(state);
        prop_assert_eq!(decode_message(&frame_of(&message)), Ok((3, message)));
    }

    #[test]
    fn replies_come_back(error: Option<String>) {
        let message = Message::Reply(error);
        prop_assert_eq!(decode_message(&frame_of(&message)), Ok((3, message)));
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
        let _ = decode_request(&bytes);
        let _ = decode_message(&bytes);
    }

    #[test]
    fn frames_do_not_depend_on_how_bytes_arrive(lines in proptest::collection::vec("[a-z=\t]{0,40}", 0..20), size in 1usize..50) {
        let stream: Vec<u8> = lines.iter().flat_map(|l| [l.as_bytes(), b"\n"].concat()).collect();
        let mut frames = Frames::default();
        let mut seen = Vec::new();
        for chunk in stream.chunks(size) {
            frames.push(chunk);
            while let Some(frame) = frames.next_frame().unwrap() {
                seen.push(String::from_utf8(frame.to_vec()).unwrap());
            }
        }
        prop_assert_eq!(seen, lines);
    }
}

#[test]
fn a_peer_that_never_ends_its_line_is_noticed() {
    let mut frames = Frames::default();
    frames.push(&vec![b'x'; MAX_FRAME - 1]);
    assert_eq!(frames.next_frame(), Ok(None));
    frames.push(b"x");
    assert_eq!(frames.next_frame(), Err(DecodeError::TooLong));
}

#[test]
fn newer_peers_are_understood() {
    assert_eq!(decode_request(b"start\tseq=4\tfuture=1"), Ok((4, Request::Start)));
    assert_eq!(decode_request(b"dance\tseq=5"), Err(DecodeError::UnknownVerb { verb: "dance".into(), seq: 5 }));
    let Ok((0, Message::State(state))) = decode_message(b"state\tphase=created\tpid=9\tmood=good") else { panic!() };
    assert_eq!(state.process, Some(Process { pid: 9, start_time: 0 }));
    assert_eq!(state.exit, None);
}

#[test]
fn long_texts_keep_their_end_and_stay_within_a_frame() {
    let text = format!("{}the cause", "é\n".repeat(MAX_FRAME));
    let record = ExitRecord { reason: text.clone(), message: String::new(), ..Default::default() };
    let frame = frame_of(&Message::State(State { text, exit: Some(record), ..Default::default() }));
    let Ok((_, Message::State(state))) = decode_message(&frame) else { panic!() };
    assert!(state.text.len() <= MAX_TEXT && state.text.ends_with("the cause"));
}
