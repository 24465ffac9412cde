//! A registry that does what a test says: one closure answers all requests, well or badly.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

// P-256, made with openssl for these tests only, and valid until 2126: an authority whose key was thrown away, a server
// certificate for localhost and 127.0.0.1, a client certificate.
pub(crate) const CA: &str = include_str!("tls/ca.pem");
pub(crate) const CLIENT_CERT: &str = include_str!("tls/client.pem");
pub(crate) const CLIENT_KEY: &str = include_str!("tls/client.key");

/// What came in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    /// A header by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    /// The first byte that a Range asks for.
    pub(crate) fn range(&self) -> usize {
        let text = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        text.map_or(0, |text| text.parse().unwrap())
    }
}

/// What goes out.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    manner: Manner,
}

/// How a body is sent.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Whole,
    /// In chunks, without a length.
    Chunked,
    /// So many bytes of it, then the connection ends.
    Cut(usize),
    /// So many bytes of it, then nothing for long.
    Stall(usize),
    /// A byte at a time, with a pause.
    Trickle(Duration),
    /// Nothing at all, for long.
    Silent,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), manner: Manner::Whole }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, body)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(307, "").with("location", to)
    }

    /// The rest of `body` from where the request wants it.
    pub(crate) fn part(request: &Request, body: &[u8]) -> Self {
        match request.range() {
            0 => Self::ok(body),
            from => Self::new(206, &body[from..])
                .with("content-range", &format!("bytes {from}-{}/{}", body.len() - 1, body.len())),
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn manner(self, manner: Manner) -> Self {
        Self { manner, ..self }
    }

    pub(crate) fn chunked(self) -> Self {
        self.manner(Manner::Chunked)
    }

    pub(crate) fn cut(self, after: usize) -> Self {
        self.manner(Manner::Cut(after))
    }

    pub(crate) fn stall(self, after: usize) -> Self {
        self.manner(Manner::Stall(after))
    }

    pub(crate) fn trickle(self, pause: Duration) -> Self {
        self.manner(Manner::Trickle(pause))
    }

    pub(crate) fn silent() -> Self {
        Self::ok("").manner(Manner::Silent)
    }
}

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server; what it serves ends with the test process.
pub(crate) struct Server {
    /// `127.0.0.1:port`
    pub(crate) host: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(None, answer)
    }

    /// With TLS, by the certificate for `localhost`; `client` asks for one from the same authority.
    pub(crate) fn start_tls(client: bool, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = if client {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(CA.as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let cert = CertificateDer::from_pem_slice(include_bytes!("tls/server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
        Self::serve(Some(Arc::new(builder.with_single_cert(vec![cert], key).unwrap())), answer)
    }

    fn serve(tls: Option<Arc<ServerConfig>>, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen): (Arc<Answer>, _) = (Arc::new(answer), log.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, answer, seen, tls) = (stream.unwrap(), answer.clone(), seen.clone(), tls.clone());
                thread::spawn(move || {
                    // A client that goes away is not this server's trouble.
                    let _ = match tls {
                        None => converse(stream, &*answer, &seen),
                        Some(config) => {
                            let connection = ServerConnection::new(config).unwrap();
                            converse(StreamOwned::new(connection, stream), &*answer, &seen)
                        }
                    };
                });
            }
        });
        Self { host, log }
    }

    pub(crate) fn port(&self) -> &str {
        self.host.rsplit_once(':').unwrap().1
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Method and path of all requests so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|request| format!("{} {}", request.method, request.path())).collect()
    }
}

trait Connection: Read + Write {
    fn end(&mut self);
}

impl Connection for TcpStream {
    fn end(&mut self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Connection for StreamOwned<ServerConnection, TcpStream> {
    fn end(&mut self) {
        self.sock.end();
    }
}

fn converse(connection: impl Connection, answer: &Answer, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    while let Some(request) = read_request(&mut connection)? {
        if request.method.is_empty() {
            let _ = write_reply(connection.get_mut(), &request, &Reply::new(400, ""));
            return Ok(());
        }
        log.lock().unwrap().push(request.clone());
        let reply = answer(&request);
        if !write_reply(connection.get_mut(), &request, &reply)? {
            connection.get_mut().end();
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(connection: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    // A client that begins with a TLS handshake is answered in the clear, as web servers do.
    if connection.fill_buf()?.first() == Some(&0x16) {
        return Ok(Some(Request::default()));
    }
    let mut line = String::new();
    if connection.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        connection.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut request = Request { method, target, headers, body: String::new() };
    let length = request.header("content-length").map_or(0, |text| text.parse().unwrap());
    connection.take(length).read_to_string(&mut request.body)?;
    Ok(Some(request))
}

/// Whether the connection can be used again.
fn write_reply(connection: &mut impl Connection, request: &Request, reply: &Reply) -> std::io::Result<bool> {
    const LONG: Duration = Duration::from_secs(60);
    if matches!(reply.manner, Manner::Silent) {
        thread::sleep(LONG);
        return Ok(false);
    }
    let mut head = format!("HTTP/1.1 {} Status\r\n", reply.status);
    match reply.manner {
        Manner::Chunked => head.push_str("transfer-encoding: chunked\r\n"),
        _ => head.push_str(&format!("content-length: {}\r\n", reply.body.len())),
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    connection.write_all(format!("{head}\r\n").as_bytes())?;
    connection.flush()?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    match reply.manner {
        Manner::Whole => connection.write_all(&reply.body)?,
        Manner::Chunked => {
            for chunk in reply.body.chunks(1000) {
                connection.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
                connection.write_all(chunk)?;
                connection.write_all(b"\r\n")?;
            }
            connection.write_all(b"0\r\n\r\n")?;
        }
        Manner::Cut(after) => {
            connection.write_all(&reply.body[..after])?;
            connection.flush()?;
            return Ok(false);
        }
        Manner::Stall(after) => {
            connection.write_all(&reply.body[..after])?;
            connection.flush()?;
            thread::sleep(LONG);
            return Ok(false);
        }
        Manner::Trickle(pause) => {
            for byte in &reply.body {
                connection.write_all(&[*byte])?;
                connection.flush()?;
                thread::sleep(pause);
            }
        }
        Manner::Silent => {}
    }
    connection.flush()?;
    Ok(true)
}
