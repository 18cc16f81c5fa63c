use std::path::Path;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use expect_test::expect;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::*;
use crate::conformance::{Running, records, sink};

/// What a server was told, and what it is to do.
#[derive(Default)]
struct Server {
    /// A transaction each: the sender, the recipient, the message.
    mails: Mutex<Vec<(String, String, String)>>,
    logins: Mutex<Vec<String>>,
    /// A recipient that it does not know.
    unknown: Option<&'static str>,
    /// After how many mails it breaks the connection without an answer.
    drops: Mutex<usize>,
    /// What is answered to the first command of a kind, before that goes as usual.
    faults: Mutex<Vec<(&'static str, &'static str)>>,
    /// Answers 450 to so many recipients first.
    busy: Mutex<usize>,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

impl Server {
    async fn start(self) -> (u16, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Arc::new(self);
        let accepting = Arc::clone(&server);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = Arc::clone(&accepting);
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let _ = stream.write_all(b"220 ready\r\n").await;
                    if server.talk(&mut stream).await {
                        let tls = server.tls.clone().unwrap().accept(stream.into_inner()).await.unwrap();
                        server.talk(&mut BufReader::new(tls)).await;
                    }
                });
            }
        });
        (port, server)
    }

    fn fault(&self, verb: &str) -> Option<&'static str> {
        let mut faults = self.faults.lock().unwrap();
        let at = faults.iter().position(|(of, _)| *of == verb)?;
        Some(faults.remove(at).1)
    }

    /// Speaks SMTP, taking a bare line feed for the end of a line as many servers do. True: encryption begins.
    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufReader<S>) -> bool {
        let (mut from, mut to) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return false;
            }
            let line = line.trim_end();
            let verb = line.split([' ', ':']).next().unwrap_or_default();
            if let Some(fault) = self.fault(verb) {
                let _ = stream.write_all(fault.as_bytes()).await;
                match fault.starts_with("421") {
                    true => return false,
                    false => continue,
                }
            }
            let answer = match verb {
                "EHLO" if self.tls.is_some() => "250-me\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN",
                "EHLO" => "250-me\r\n250 AUTH PLAIN LOGIN",
                "STARTTLS" => {
                    let _ = stream.write_all(b"220 go\r\n").await;
                    return true;
                }
                "AUTH" => {
                    self.logins.lock().unwrap().push(line.to_owned());
                    "235 in"
                }
                "MAIL" => {
                    line.clone_into(&mut from);
                    "250 ok"
                }
                "RCPT" if self.unknown.is_some_and(|unknown| line.contains(unknown)) => "550 unknown",
                "RCPT" if take_one(&self.busy) => "450 busy",
                "RCPT" => {
                    line.clone_into(&mut to);
                    "250 ok"
                }
                "DATA" => {
                    let _ = stream.write_all(b"354 go on\r\n").await;
                    let mut message = String::new();
                    loop {
                        let mut line = String::new();
                        stream.read_line(&mut line).await.unwrap();
                        if line.trim_end_matches(['\r', '\n']) == "." {
                            break;
                        }
                        message += line.strip_prefix('.').unwrap_or(&line);
                    }
                    self.mails.lock().unwrap().push((from.clone(), to.clone(), message));
                    if take_one(&self.drops) {
                        return false;
                    }
                    self.fault(".").map_or("250 taken", str::trim_end)
                }
                "RSET" | "NOOP" => "250 ok",
                "QUIT" => "221 bye",
                _ => "500 what",
            };
            if stream.write_all(format!("{answer}\r\n").as_bytes()).await.is_err() {
                return false;
            }
        }
    }
}

fn take_one(count: &Mutex<usize>) -> bool {
    let mut count = count.lock().unwrap();
    let is_left = *count > 0;
    *count = count.saturating_sub(1);
    is_left
}

fn options(port: u16, more: &str) -> String {
    format!(
        r#"{{"smtp":"smtp://127.0.0.1:{port}","starttls":"none","from":"tocsin@example.org","to":["a@example.org"]{more}}}"#
    )
}

/// Runs a sink over records; time passes by itself. Gives how many mails were delivered and how many refused.
async fn run(options: &str, folder: &Path, given: &[&str]) -> (u64, u64) {
    let running = Running::start(sink::<Config>(options, folder), None, None).await.unwrap();
    let (clock, metrics) = (Arc::clone(&running.clock), running.metrics.clone());
    running.send(records(given)).await;
    let end = tokio::spawn(running.end());
    while !end.is_finished() {
        use tocsin_pipeline::time::Clock as _;
        clock.set(clock.now().saturating_add(std::time::Duration::from_secs(1)));
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    end.await.unwrap().unwrap();
    (metrics.notification_count("delivered"), metrics.notification_count("refused"))
}

/// The text part of a message, its lines ended as in this file.
fn text_of(message: &str) -> String {
    part_of(message, "text/plain")
}

fn html_of(message: &str) -> String {
    part_of(message, "text/html")
}

fn part_of(message: &str, kind: &str) -> String {
    let part = message.split(&format!("Content-Type: {kind}")).nth(1).unwrap();
    let encoded = part.split("\r\n\r\n").nth(1).unwrap();
    let encoded: String = encoded.split("--=_").next().unwrap().split_whitespace().collect();
    String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap().replace("\r\n", "\n")
}

fn header<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

const FIRING: &str = r#"{"alert":"errors","state":"firing","fingerprint":"f1","id":"abc","firing_id":"abc","labels":{"host":"a"},"annotations":{"summary":"too many"},"starts_at":"2026-11-20T12:00:00Z","ends_at":null,"values":{"errors":7},"evidence":[{"raw":"GET /","source":"access","coordinate":{}}],"matches":7}"#;
const RESOLVED: &str = r#"{"alert":"errors","state":"resolved","fingerprint":"f1","id":"def","firing_id":"abc","labels":{"host":"a"},"annotations":{"summary":"too many"},"starts_at":"2026-11-20T12:00:00Z","ends_at":"2026-11-20T12:05:00Z","values":{"errors":1},"evidence":[],"matches":9}"#;

#[tokio::test]
async fn firing_and_resolved_arrive_once_each_in_one_thread() {
    let (port, server) = Server::default().start().await;
    let folder = tempfile::tempdir().unwrap();
    let options = options(port, r#","username":"u","password":"p""#);
    assert_eq!(run(&options, folder.path(), &[FIRING, RESOLVED]).await, (2, 0));
    let mails = server.mails.lock().unwrap();
    let [(from, to, firing), (_, _, resolved)] = &mails[..] else { panic!("{} mails", mails.len()) };
    assert!(from.starts_with("MAIL FROM:<tocsin@example.org>") && to == "RCPT TO:<a@example.org>", "{from} {to}");
    assert_eq!(header(firing, "Subject"), Some("[FIRING] errors: too many"));
    assert_eq!(header(resolved, "Subject"), Some("[RESOLVED] errors: too many"));
    let begun = header(firing, "Message-ID").unwrap();
    assert!(begun.starts_with("<abc.") && begun.ends_with("@example.org>"), "{begun}");
    assert_eq!(header(resolved, "In-Reply-To"), Some(begun));
    assert_eq!(header(resolved, "References"), Some(begun));
    assert_eq!(header(firing, "In-Reply-To"), None);
    assert!(header(firing, "Date").unwrap().starts_with("Fri, 20 Nov 2026 12:0"), "{firing}");
    assert_eq!(server.logins.lock().unwrap()[0], format!("AUTH PLAIN {}", STANDARD.encode("\0u\0p")));
    expect![[r#"
        errors is firing.
        summary: too many

        since: 2026-11-20T12:00:00Z
        host = a
        errors: 7

        Records (7 in all):
          access: GET /
    "#]]
    .assert_eq(&text_of(firing));
    expect![[r#"
        errors is resolved.
        summary: too many

        since: 2026-11-20T12:00:00Z
        until: 2026-11-20T12:05:00Z
        host = a
        errors: 1
    "#]]
    .assert_eq(&text_of(resolved));
}

#[tokio::test]
async fn what_may_not_wait_is_told_in_one_mail_of_text() {
    let (port, server) = Server::default().start().await;
    let folder = tempfile::tempdir().unwrap();
    let options = options(port, r#","concurrency":1,"max_waiting":1"#);
    let running = Running::start(sink::<Config>(&options, folder.path()), None, None).await.unwrap();
    running.send(records(&[FIRING, RESOLVED, r#"{"message":"x\r\n.\r\nMAIL FROM:<evil@example.org>"}"#])).await;
    running.end().await.unwrap();
    let mails = server.mails.lock().unwrap();
    let [_, (_, _, digest)] = &mails[..] else { panic!("{} mails", mails.len()) };
    assert!(header(digest, "Subject").unwrap().starts_with("[DIGEST] 2 notifications were not sent"), "{digest}");
    assert!(header(digest, "Message-ID").unwrap().ends_with("@example.org>"), "{digest}");
    assert!(!digest.contains("multipart"), "{digest}");
    expect![[r#"
        2 notifications were not sent one by one since 2026-11-20T12:00:00Z; first: errors resolved, x  .  MAIL FROM:<evil@example.org>.

        They came until 2026-11-20T12:00:00Z, faster than they could be delivered. None of the alerts among them was firing in the end.

        Ends of alerts that had been sent before:
          2026-11-20T12:00:01Z resolved errors: host=a

        The first:
          2026-11-20T12:00:02Z x  .  MAIL FROM:<evil@example.org>
    "#]].assert_eq(&text_of(digest));
}

#[tokio::test]
async fn what_stands_in_a_record_stays_within_its_mail() {
    for hostile in [
        "x\n.\nMAIL FROM:<evil@example.org>\nRCPT TO:<victim@example.org>\nDATA\nhi\n.\n",
        "x\r.\rMAIL FROM:<evil@example.org>",
        "x\r\n.\r\nMAIL FROM:<evil@example.org>\r\n",
        "x\r\n.\nRSET",
        ".\r\n..\r\n",
        "x\r\nBcc: victim@example.org\r\n\r\nbody",
        "x\r\n Bcc: victim@example.org",
        "x\u{0}\u{b}\u{c}\u{85}\u{2028}\u{2029}Bcc: victim@example.org",
        "=?utf-8?q?x=0d=0aBcc:_victim@example.org?=",
        "\n.\r\nQUIT\r\n",
        "--=_0123456789abcdef0123456789abcdef--\r\n\r\nContent-Type: text/html\r\n\r\n<b>x</b>",
        "\u{feff}\u{202e}gro.elpmaxe@mitciv :ccB",
    ] {
        let (port, server) = Server::default().start().await;
        let folder = tempfile::tempdir().unwrap();
        let summary = serde_json::to_string(hostile).unwrap();
        let record = FIRING.replace("\"too many\"", &summary).replace("\"GET /\"", &summary);
        let record = record.replace("\"host\":\"a\"", &format!("\"host\":{summary}"));
        assert_eq!(run(&options(port, ""), folder.path(), &[&record]).await, (1, 0), "{hostile:?}");
        let mails = server.mails.lock().unwrap();
        assert_eq!(mails.len(), 1, "{hostile:?}");
        let (from, to, message) = &mails[0];
        assert!(from.contains("tocsin@example.org") && to.contains("a@example.org"), "{hostile:?}: {from} {to}");
        let head = message.split("\r\n\r\n").next().unwrap();
        let names = head.lines().filter(|line| !line.starts_with([' ', '\t']));
        let names: Vec<_> = names.map(|line| line.split(':').next().unwrap()).collect();
        let further = ["Auto-Submitted", "X-Auto-Response-Suppress", "List-Id", "MIME-Version", "Content-Type"];
        let expected = [&["From", "To", "Subject", "Date", "Message-ID"][..], &further].concat();
        assert_eq!(names, expected, "{hostile:?}");
        assert!(!message.lines().any(|line| line.starts_with('.')), "{hostile:?}: {message}");
        assert!(!message.replace("\r\n", "").contains(['\r', '\n']), "{hostile:?}: bare line ends");
        assert!(!text_of(message).replace("\r\n", "").contains('\r'), "{hostile:?}: bare returns");
    }
}

#[tokio::test]
async fn a_mail_whose_answer_was_lost_is_sent_again_the_same() {
    let (port, server) = Server { drops: Mutex::new(1), ..Server::default() }.start().await;
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(&options(port, ""), folder.path(), &[FIRING]).await, (1, 0));
    let mails = server.mails.lock().unwrap();
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[0], mails[1]);
}

#[tokio::test]
async fn a_server_that_fails_at_any_step_is_asked_again_or_not_as_it_says() {
    // The step, what is answered to it, and what becomes of the mail: how often it was delivered, tried again and refused.
    let faults = [
        ("EHLO", "421 too busy\r\n", [1, 1, 0]),
        ("AUTH", "454 later\r\n", [1, 1, 0]),
        // A wrong password is put right by somebody.
        ("AUTH", "535 wrong\r\n", [1, 1, 0]),
        ("MAIL", "451 later\r\n", [1, 1, 0]),
        ("MAIL", "550 not you\r\n", [0, 0, 1]),
        // Greylisting.
        ("RCPT", "450 greylisted, try again in 300 seconds\r\n", [1, 1, 0]),
        ("RCPT", "451-4.7.1 greylisted\r\n451 4.7.1 come back\r\n", [1, 1, 0]),
        ("RCPT", "550 unknown\r\n", [0, 0, 1]),
        ("RCPT", "421 shutting down\r\n", [1, 1, 0]),
        ("DATA", "451 no room\r\n", [1, 1, 0]),
        ("DATA", "554 no\r\n", [0, 0, 1]),
        // After the final dot.
        (".", "452 disk full\r\n", [1, 1, 0]),
        (".", "554 spam\r\n", [0, 0, 1]),
        // Something that is no SMTP.
        ("MAIL", "HTTP/1.1 400 Bad Request\r\n", [1, 1, 0]),
    ];
    for (step, answer, expected) in faults {
        let (port, _) = Server { faults: Mutex::new(vec![(step, answer)]), ..Server::default() }.start().await;
        let folder = tempfile::tempdir().unwrap();
        let options = options(port, r#","username":"u","password":"p""#);
        let told = crate::service::tests::run_sink(sink::<Config>(&options, folder.path()), &[FIRING]).await;
        assert_eq!(told, expected, "{step}: {answer}");
    }
}

#[tokio::test]
async fn a_mail_that_is_greylisted_is_the_same_when_it_comes_again() {
    let faults = vec![("RCPT", "450 later\r\n"), (".", "451 later\r\n")];
    let (port, server) = Server { faults: Mutex::new(faults), ..Server::default() }.start().await;
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(&options(port, ""), folder.path(), &[FIRING]).await, (1, 0));
    let mails = server.mails.lock().unwrap();
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[0], mails[1]);
}

#[tokio::test]
async fn a_history_is_drawn_and_an_alert_can_be_acknowledged() {
    let (port, server) = Server::default().start().await;
    let folder = tempfile::tempdir().unwrap();
    let more = r#""history":[[1795176000,0],[1795176060,2],[1795176120,7]],
        "acknowledge":{"url":"https://tocsin.example.org/ack?a=1&b=2"},"values""#;
    let record =
        FIRING.replace("\"values\"", more).replace("too many\"}", "too many\",\"runbook\":\"https://example.org/r\"}");
    assert_eq!(run(&options(port, ""), folder.path(), &[&record]).await, (1, 0));
    let mails = server.mails.lock().unwrap();
    assert_eq!(header(&mails[0].2, "Auto-Submitted"), Some("auto-generated"));
    assert_eq!(header(&mails[0].2, "List-Id"), Some("<out.tocsin.example.org>"));
    expect![[r#"
        errors is firing.
        runbook: https://example.org/r
        summary: too many

        since: 2026-11-20T12:00:00Z
        host = a
        errors: 7

        ▁▃█
        0 to 7, 2026-11-20T12:00:00Z to 2026-11-20T12:02:00Z

        Records (7 in all):
          access: GET /

        Acknowledge: https://tocsin.example.org/ack?a=1&b=2
    "#]]
    .assert_eq(&text_of(&mails[0].2));
    expect![[r##"
        <!doctype html><html><body style="font-family:sans-serif;color:#222">
        <p style="font-size:18px;border-left:6px solid #c62828;padding-left:10px">
        <b>errors</b> is firing</p>
        <p><b>runbook:</b> <a href="https:&#x2f;&#x2f;example.org&#x2f;r">https:&#x2f;&#x2f;example.org&#x2f;r</a></p>
        <p>too many</p>
        <p><a href="https:&#x2f;&#x2f;tocsin.example.org&#x2f;ack?a=1&amp;b=2" style="background:#1565c0;color:#fff;padding:6px 14px;text-decoration:none">Acknowledge</a></p>
        <table style="border-collapse:collapse">
        <tr><td style="padding:2px 12px 2px 0">since</td><td>2026-11-20T12:00:00Z</td></tr>
        <tr><td style="padding:2px 12px 2px 0">host</td><td>a</td></tr>
        <tr><td style="padding:2px 12px 2px 0">errors</td><td><b>7</b></td></tr>
        </table>
        <table cellspacing="1" cellpadding="0" style="margin-top:8px"><tr>
        <td valign="bottom" height="48"><table cellspacing="0" cellpadding="0"><tr><td width="6" height="1" bgcolor="#c62828" style="font-size:1px;line-height:1px">&nbsp;</td></tr></table></td>
        <td valign="bottom" height="48"><table cellspacing="0" cellpadding="0"><tr><td width="6" height="14" bgcolor="#c62828" style="font-size:1px;line-height:1px">&nbsp;</td></tr></table></td>
        <td valign="bottom" height="48"><table cellspacing="0" cellpadding="0"><tr><td width="6" height="48" bgcolor="#c62828" style="font-size:1px;line-height:1px">&nbsp;</td></tr></table></td>
        </tr></table>
        <p style="margin:2px 0;font-size:12px;color:#666">0 to 7, 2026-11-20T12:00:00Z to 2026-11-20T12:02:00Z</p>
        <pre style="background:#f4f4f4;padding:6px;white-space:pre-wrap">GET &#x2f;</pre>
        </body></html>
    "##]].assert_eq(&html_of(&mails[0].2));
}

#[tokio::test]
async fn a_notification_of_several_alerts_lists_them() {
    let (port, server) = Server::default().start().await;
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(&options(port, ""), folder.path(), &[crate::notice::tests::GROUP]).await, (1, 0));
    let mails = server.mails.lock().unwrap();
    let subject = "[FIRING:2, RESOLVED:1] errors (escalated): severity=warning";
    assert_eq!(header(&mails[0].2, "Subject"), Some(subject));
    expect![[r#"
        errors is firing.

        since: 2026-11-20T12:00:00Z
        severity = warning
        errors: 7

        Alerts (2 firing, 1 resolved):
          FIRING errors {host=a, severity=warning}: bad
          FIRING errors {host=b, severity=warning}
          RESOLVED errors {host=c, severity=warning}
          and 4 more

        Acknowledge: https://tocsin.example.org/ack/1
    "#]]
    .assert_eq(&text_of(&mails[0].2));
}

#[tokio::test]
async fn a_digest_lists_every_alert_however_many_there_are() {
    let (port, server) = Server::default().start().await;
    let folder = tempfile::tempdir().unwrap();
    let alert = |number: u32| {
        format!(
            "{{\"alert\":\"down\",\"state\":\"firing\",\"labels\":{{\"instance\":\"machine-{number:05}.example.org\"}}}}"
        )
    };
    let alerts: Vec<_> = (0..5000).map(alert).collect();
    let record = format!(
        "{{\"alert\":\"digest\",\"digest\":true,\"reason\":\"digest\",\"id\":\"d\",\"firing_id\":\"d\",\"labels\":{{}},\"more\":0,\"annotations\":{{\"summary\":\"5000 alerts were not sent one by one\"}},\"alerts\":[{}]}}",
        alerts.join(",")
    );
    assert_eq!(run(&options(port, ""), folder.path(), &[&record]).await, (1, 0));
    let mails = server.mails.lock().unwrap();
    let [(_, _, mail)] = &mails[..] else { panic!("{} mails", mails.len()) };
    assert_eq!(header(mail, "Subject").unwrap(), "[DIGEST] 5000 alerts were not sent one by one");
    let text = text_of(mail);
    let missing: Vec<_> = (0..5000).filter(|number| !text.contains(&format!("machine-{number:05}"))).collect();
    assert!(missing.is_empty(), "{} are missing", missing.len());
}

#[tokio::test]
async fn one_bad_recipient_does_not_keep_the_others_from_being_told() {
    let (port, server) = Server { unknown: Some("b@"), busy: Mutex::new(1), ..Server::default() }.start().await;
    let folder = tempfile::tempdir().unwrap();
    let options =
        options(port, "").replace(r#"["a@example.org"]"#, r#"["a@example.org","b@example.org","c@example.org"]"#);
    assert_eq!(run(&options, folder.path(), &[FIRING]).await, (2, 1));
    let mut told: Vec<_> = server.mails.lock().unwrap().iter().map(|(_, to, _)| to.clone()).collect();
    told.sort();
    assert_eq!(told, ["RCPT TO:<a@example.org>", "RCPT TO:<c@example.org>"]);
}

#[tokio::test]
async fn starttls_is_required_unless_it_is_switched_off_and_the_certificate_is_checked() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let (port, server) = Server { tls: Some(Arc::new(tls).into()), ..Server::default() }.start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), made.cert.pem()).unwrap();
    let secure = |more: &str| {
        let options = options(port, more).replace(r#""starttls":"none","#, "");
        options.replace("127.0.0.1", "localhost").replace('}', r#","max_age":"1s"}"#)
    };
    assert_eq!(run(&secure(r#","ca":"ca.pem""#), folder.path(), &[FIRING]).await, (1, 0));
    assert_eq!(server.mails.lock().unwrap().len(), 1);
    assert_eq!(run(&secure(""), folder.path(), &[FIRING]).await, (0, 1), "an unknown authority");
    let (port_plain, plain) = Server::default().start().await;
    let options = secure("").replace(&port.to_string(), &port_plain.to_string());
    assert_eq!(run(&options, folder.path(), &[FIRING]).await, (0, 1), "a server without STARTTLS");
    assert_eq!(server.mails.lock().unwrap().len() + plain.mails.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn nothing_goes_to_a_server_that_does_not_begin_to_encrypt() {
    // Somebody on the way has taken the offer out, or answers in the server's place.
    let faults = vec![("EHLO", "250-me\r\n250 STARTTLS\r\n"), ("STARTTLS", "454 not now\r\n")];
    let refused = Server { faults: Mutex::new(faults), ..Server::default() };
    for server in [Server::default(), refused] {
        let (port, server) = server.start().await;
        let folder = tempfile::tempdir().unwrap();
        let options = options(port, r#","username":"u","password":"p","max_age":"1s""#);
        let options = options.replace(r#""starttls":"none","#, "");
        assert_eq!(run(&options, folder.path(), &[FIRING]).await, (0, 1));
        assert!(server.mails.lock().unwrap().is_empty() && server.logins.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_record_that_is_no_alert_gets_a_mail_of_its_fields() {
    let (port, server) = Server::default().start().await;
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(&options(port, ""), folder.path(), &[r#"{"message":"disk\nfull","used":0.99}"#]).await, (1, 0));
    let mails = server.mails.lock().unwrap();
    assert_eq!(header(&mails[0].2, "Subject"), Some("disk full"));
    expect![[r#"
        message: disk
        full
        used: 0.99

    "#]]
    .assert_eq(&text_of(&mails[0].2));
}

/// What a mail says by templates of its own; what is not given is as usual.
fn worded(options: &str, record: &str) -> Worded {
    let mut whole = serde_json::json!({ "smtp": "smtp://h", "from": "tocsin@example.org", "to": ["a@b.c"] });
    let given: serde_json::Value = serde_json::from_str(options).unwrap();
    whole.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
    let config: Config = serde_json::from_value(whole).unwrap();
    let wording = Wording {
        subject: Template::compile(&config.subject, Escape::None).unwrap(),
        text: Template::compile(&config.text, Escape::None).unwrap(),
        html: Template::compile(&config.html, Escape::Html).unwrap(),
    };
    wording.of(&crate::notice::tests::record(record))
}

#[test]
fn a_test_says_so_in_a_subject_of_ones_own() {
    let record = r#"{"alert":"disk","state":"firing","test":true,"labels":{},"annotations":{"summary":"full"}}"#;
    let subject = |options| worded(options, record).subject;
    assert_eq!(subject(r#"{"subject":"{{ annotations.summary }}"}"#), "[TEST] full");
    assert_eq!(subject(r#"{"subject":"{{ notice.title }}"}"#), "[TEST] [FIRING] disk: full");
    assert_eq!(subject(r#"{"subject":"tocsin: {{ notice.title }}"}"#), "tocsin: [TEST] [FIRING] disk: full");
}

#[test]
fn an_amendment_is_told_in_words() {
    let Worded { subject, text, html } = worded("{}", crate::notice::tests::AMENDED);
    expect![[r#"
        [AMENDED] errors {host="a<b>", severity="critical"}

        errors: what came late says that the condition held at 2026-11-20T12:03:00Z, and it was decided that it did not.

        host = a<b>
        severity = critical
        errors: 9
        update: 1
        amends: abc


        <!doctype html><html><body style="font-family:sans-serif;color:#222">
        <p style="font-size:18px;border-left:6px solid #546e7a;padding-left:10px">
        <b>errors</b>: what came late says that the condition held at 2026-11-20T12:03:00Z, and it was decided that it did not</p>
        <table style="border-collapse:collapse">
        <tr><td style="padding:2px 12px 2px 0">host</td><td>a&lt;b&gt;</td></tr>
        <tr><td style="padding:2px 12px 2px 0">severity</td><td>critical</td></tr>
        <tr><td style="padding:2px 12px 2px 0">errors</td><td><b>9</b></td></tr>
        <tr><td style="padding:2px 12px 2px 0">update</td><td><b>1</b></td></tr>
        <tr><td style="padding:2px 12px 2px 0">amends</td><td>abc</td></tr>
        </table>
        </body></html>
    "#]].assert_eq(&format!("{subject}\n\n{text}\n\n{html}"));
}

#[test]
fn problems_are_told() {
    let config: Config = serde_json::from_str(
        r#"{"smtp":"smtps://u:p@host","starttls":"none","username":"u","from":"nobody","to":["a@b.c","x y@z"],
            "subject":"{{ x","concurrency":0,"timeout":"0s"}"#,
    )
    .unwrap();
    let told: Vec<_> = config.problems().iter().map(|found| format!("{}: {}", found.option, found.message)).collect();
    expect![[r#"
        smtp: is not the URL of a mail server
        username: needs its `password`
        from: "nobody" is not an address: Missing domain or user
        to[1]: "x y@z" is not an address: Invalid email user
        subject: unexpected end of input, expected end of variable block
        concurrency: must be from 1 to 64
        timeout: must be longer than nothing"#]]
    .assert_eq(&told.join("\n"));
}
