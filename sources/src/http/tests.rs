use std::io::Write as _;
use std::net::SocketAddr;

use expect_test::{Expect, expect};
use serde_json::json;
use tocsin_pipeline::source::SourceEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::testing::{Running, TestContext, context, context_of};

async fn listen(options: &str, test: TestContext) -> (Running, SocketAddr) {
    let config: Config = toml::from_str(&format!("address = \"127.0.0.1:0\"\n{options}")).unwrap();
    assert_eq!(config.problems(), []);
    let mut http = Http { config, bound: None };
    http.open(&test.source).await.unwrap();
    let address = http.bound.as_ref().unwrap().0.local_addr().unwrap();
    (Running::run(Box::new(http), test), address)
}

/// Sends a request on a connection of its own and reads the answer to its end, in small letters as far as names go.
async fn send(address: SocketAddr, head: &str, body: &[u8]) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = format!("{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    client.write_all(head.as_bytes()).await.unwrap();
    // The server may have answered and closed before it has read everything.
    let _ = client.write_all(body).await;
    read_answer(&mut client).await
}

/// The status and body of an answer.
async fn read_answer(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return format!("no answer: {answer:?}") };
    let status = head.split(' ').nth(1).unwrap_or_default();
    let retry = if head.to_ascii_lowercase().contains("\r\nretry-after: 1") { " (retry)" } else { "" };
    format!("{status}{retry} {}", body.trim_end())
}

async fn post(address: SocketAddr, headers: &str, body: impl AsRef<[u8]>) -> String {
    let separator = if headers.is_empty() { "" } else { "\r\n" };
    send(address, &format!("POST / HTTP/1.1{separator}{headers}"), body.as_ref()).await
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// Posts a body and tells the answer and the records that came of it.
async fn check(options: &str, headers: &str, body: impl AsRef<[u8]>, records: usize, expect: Expect) {
    let (mut running, address) = listen(options, context()).await;
    let answer = post(address, headers, body).await;
    let mut told = vec![answer];
    told.extend(running.told(records).await);
    told.extend(running.stop_and_tell().await);
    expect.assert_eq(&told.join("\n"));
}

#[tokio::test]
async fn each_encoding_becomes_records_with_their_own_bytes() {
    let json = r#"[{"a": 1.50}, {"b":"x"}]"#;
    check(
        "",
        "",
        json,
        2,
        expect![[r#"
        200 
        {"a": 1.50}
        {"b":"x"}"#]],
    )
    .await;
    check(
        "",
        "Content-Type: application/json",
        "{\"a\":\n1}",
        1,
        expect![[r#"
        200 
        {"a":
        1}"#]],
    )
    .await;
    check(
        "",
        "",
        "{\"a\":1}\n{\"b\":2}\n",
        2,
        expect![[r#"
        200 
        {"a":1}
        {"b":2}"#]],
    )
    .await;
    check(
        "",
        "Content-Type: application/x-ndjson; charset=utf-8",
        "{\"a\":1}\r\nnot json\n\n{\"b\":2}",
        3,
        expect![[r#"
            200 
            {"a":1}
            not json
            {"b":2}"#]],
    )
    .await;
    check(
        "",
        "",
        "plain\nlines",
        2,
        expect![[r#"
        200 
        plain
        lines"#]],
    )
    .await;
    check(
        "",
        "Content-Type: text/plain",
        "[not json\n",
        1,
        expect![[r#"
        200 
        [not json"#]],
    )
    .await;
    check(
        "encoding = \"text\"",
        "",
        json,
        1,
        expect![[r#"
        200 
        [{"a": 1.50}, {"b":"x"}]"#]],
    )
    .await;
    check("", "", "", 0, expect!["200 "]).await;
}

#[tokio::test]
async fn packed_bodies_are_unpacked() {
    check(
        "",
        "Content-Encoding: gzip",
        gzip(b"a\nb\n"),
        2,
        expect![[r#"
        200 
        a
        b"#]],
    )
    .await;
    let zstd = zstd::encode_all(&b"a\nb\n"[..], 3).unwrap();
    check(
        "",
        "Content-Encoding: zstd",
        zstd,
        2,
        expect![[r#"
        200 
        a
        b"#]],
    )
    .await;
}

#[tokio::test]
async fn nothing_of_a_bad_body_is_taken() {
    check("", "", r#"[{"a":1},{"b":]"#, 0, expect!["400 the body is not JSON: expected value at line 1 column 15"])
        .await;
    check("", "", r#"[{"a":1},2]"#, 0, expect!["400 value 2 is not an object; nothing was taken"]).await;
    check(
        "encoding = \"json\"",
        "",
        "{\"a\":1}\n{\"b\":2}",
        0,
        expect!["400 there is more than one JSON value; send an array, or lines as application/x-ndjson"],
    )
    .await;
    check("encoding = \"json\"", "", "text", 0, expect!["400 the body is not JSON: expected ident at line 1 column 2"])
        .await;
    check("", "Content-Encoding: br", "x", 0, expect!["415 the Content-Encoding may be gzip, zstd or identity"]).await;
    check(
        "",
        "Content-Encoding: gzip\r\nContent-Encoding: gzip",
        gzip(&gzip(b"x")),
        0,
        expect!["415 the Content-Encoding may be gzip, zstd or identity"],
    )
    .await;
    check(
        "",
        "Content-Encoding: gzip",
        &gzip(b"half")[..12],
        0,
        expect!["400 the body cannot be unpacked: corrupt gzip stream does not have a matching checksum"],
    )
    .await;
    check("max_body_bytes = \"10\"", "", "01234567890", 0, expect!["413 the body is longer than max_body_bytes"]).await;
    check(
        "",
        "Content-Encoding: gzip",
        gzip(&vec![b'0'; 8 << 20]),
        0,
        expect!["413 the body grows more than a hundredfold by unpacking it"],
    )
    .await;
}

#[tokio::test]
async fn requests_that_are_none_of_ours_are_told_so() {
    let (running, address) = listen("path = \"/in\"", context()).await;
    assert_eq!(send(address, "POST / HTTP/1.1", b"x").await, "404 there is nothing at this path");
    assert_eq!(send(address, "GET /in HTTP/1.1", b"").await, "405 records are sent by POST");
    assert_eq!(send(address, "POST /in?x=1 HTTP/1.1", b"x").await, "200 ");
    assert_eq!(running.stop_and_tell().await, ["x"]);
}

#[tokio::test]
async fn only_who_knows_the_secret_is_let_in() {
    let options = "token = [\"new\", \"old\"]\nusername = \"tom\"\npassword = \"cat:1\"";
    let (running, address) = listen(options, context()).await;
    let refused = "401 not authorized";
    assert_eq!(post(address, "", "a").await, refused);
    assert_eq!(post(address, "Authorization: Bearer ne", "b").await, refused);
    assert_eq!(post(address, "Authorization: Bearer newer", "c").await, refused);
    assert_eq!(post(address, "Authorization: new", "d").await, refused);
    assert_eq!(post(address, "Authorization: Basic dG9tOmNhdA==", "e").await, refused);
    assert_eq!(post(address, "Authorization: Bearer new", "f").await, "200 ");
    assert_eq!(post(address, "Authorization: bearer old", "g").await, "200 ");
    assert_eq!(post(address, "Authorization: Basic dG9tOmNhdDox", "h").await, "200 ");
    assert_eq!(running.metrics.error_count("unauthorized"), 5);
    assert_eq!(running.stop_and_tell().await, ["f", "g", "h"]);
}

#[test]
fn secrets_are_not_shown() {
    let text = "address = \"a:1\"\ntoken = \"canary\"\nusername = \"u\"\npassword = \"canary\"";
    let config: Config = toml::from_str(text).unwrap();
    assert!(!format!("{config:?}").contains("canary"));
}

#[tokio::test]
async fn an_acknowledged_request_is_answered_when_its_records_are_durable() {
    let (mut running, address) = listen("acknowledge = true", context()).await;
    let request = tokio::spawn(post(address, "", "a\nb"));
    let block = running.whole_block().await;
    assert_eq!(block.position, json!({ "offset": 4 }));
    assert!(!request.is_finished(), "answered before the records were durable");
    block.acknowledgement.unwrap().send(()).unwrap();
    assert_eq!(request.await.unwrap(), "200 ");

    let request = tokio::spawn(post(address, "", "c"));
    drop(running.whole_block().await);
    assert_eq!(request.await.unwrap(), "503 (retry) the records could not be made durable");
    running.stop().await.unwrap();

    let (mut running, address) = listen("acknowledge = true\nacknowledge_timeout = \"10ms\"", context()).await;
    let request = tokio::spawn(post(address, "", "d"));
    let _block = running.whole_block().await;
    assert_eq!(request.await.unwrap(), "503 (retry) the records were not durable in time");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_stopped_source_still_answers_what_the_last_checkpoint_makes_durable() {
    let (mut running, address) = listen("acknowledge = true", context()).await;
    let request = tokio::spawn(post(address, "", "a"));
    let block = running.whole_block().await;
    running.stop().await.unwrap();
    block.acknowledgement.unwrap().send(()).unwrap();
    assert_eq!(request.await.unwrap(), "200 ");
}

#[tokio::test]
async fn a_busy_pipeline_makes_requests_wait_and_then_come_again() {
    let (mut running, address) = listen("request_timeout = \"50ms\"\nmax_requests = 1", context_of(1)).await;
    // The engine's queue holds one event, and the first is that nothing comes.
    assert!(matches!(running.any_event().await, Some(SourceEvent::Idle(_))));
    assert_eq!(post(address, "", "a").await, "200 ");
    // The engine's queue holds `a` and is full.
    let waiting = tokio::spawn(post(address, "", "b"));
    let answers = [waiting.await.unwrap(), post(address, "", "c").await];
    for answer in answers {
        assert!(answer.starts_with("503 (retry) "), "{answer}");
    }
    assert_eq!(running.told(1).await, ["a"]);
    let request = tokio::spawn(post(address, "", "d"));
    assert_eq!(running.told(1).await, ["d"], "what was answered with 503 was not taken");
    assert_eq!(request.await.unwrap(), "200 ");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let (running, address) = listen("request_timeout = \"30ms\"", context()).await;
    for (sent, expected) in [
        ("", "no answer"),
        ("POST / HTTP/1.1\r\nHost: x\r\n", "no answer"),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", "408 the body did not come in time"),
    ] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        let answer = read_answer(&mut client).await;
        assert!(answer.starts_with(expected), "{sent:?}: {answer}");
    }
    assert_eq!(running.metrics.error_count("request_timeout"), 3);
    assert_eq!(running.stop_and_tell().await, [""; 0]);
}

#[tokio::test]
async fn bodies_share_a_bounded_room() {
    let options = "max_body_bytes = \"64KiB\"\nmax_pending_bytes = \"64KiB\"";
    let (mut running, address) = listen(options, context()).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
    // Until the first body has come so far, there is room.
    let answer = loop {
        match post(address, "", "c").await {
            answer if answer == "200 " => assert_eq!(running.told(1).await, ["c"]),
            answer => break answer,
        }
    };
    assert_eq!(answer, "503 (retry) there is no room for the body just now");
    slow.write_all(b"cd").await.unwrap();
    assert_eq!(read_answer(&mut slow).await, "200 ");
    assert_eq!(running.told(1).await, ["abcd"]);
    assert_eq!(post(address, "", "e").await, "200 ");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn requests_that_may_be_smuggled_are_refused() {
    let (running, address) = listen("", context()).await;
    for request in [
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\nContent-Length: 1\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\na\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = read_answer(&mut client).await;
        assert!(answer.starts_with("400"), "{request:?}: {answer}");
    }
    assert_eq!(running.stop_and_tell().await, [""; 0]);
}

#[tokio::test]
async fn records_that_are_too_long_are_dead_letters_and_the_others_pass() {
    let bodies = ["[{\"a\":1},{\"long\":\"xxxxxxxxxx\"},{\"b\":2}]", "{\"a\":1}\n{\"long\":\"xxxxxxxxxx\"}\n"];
    for body in bodies {
        let mut test = context();
        test.source.records.max_record_bytes = 10;
        let (running, address) = listen("acknowledge = true", test).await;
        let mut running = running;
        let request = tokio::spawn(post(address, "", body));
        let mut told = Vec::new();
        loop {
            match running.event().await.unwrap() {
                SourceEvent::Block(_, block) => {
                    told.extend(crate::testing::records_of(&block));
                    if let Some(acknowledgement) = block.acknowledgement {
                        acknowledgement.send(()).unwrap();
                        break;
                    }
                }
                SourceEvent::Rejected { message, .. } => told.push(message),
                event => panic!("{event:?}"),
            }
        }
        assert_eq!(request.await.unwrap(), "200 ");
        assert!(
            told.contains(&"{\"a\":1}".to_owned()) && told.iter().any(|told| told.contains("longer than")),
            "{told:?}"
        );
        running.stop().await.unwrap();
    }
}

#[test]
fn what_does_not_go_together_is_told() {
    let problems = |options: &str| -> Vec<String> {
        let config: Config = toml::from_str(&format!("address = \"0.0.0.0:80\"\n{options}")).unwrap();
        config.problems().into_iter().map(|problem| problem.message).collect()
    };
    assert_eq!(problems("path = \"in\""), ["\"in\" is not the path of a URL"]);
    assert_eq!(problems("token = \"\""), ["an empty token lets everybody in"]);
    assert_eq!(problems("username = \"a\""), ["`username` and `password` go together"]);
    assert_eq!(
        problems("max_pending_bytes = \"1MiB\""),
        ["is less than max_body_bytes, so that a long body never fits"]
    );
    assert_eq!(
        problems("max_requests = 0\nrequest_timeout = \"0s\""),
        ["must be at least 1", "must be longer than nothing"]
    );
}
