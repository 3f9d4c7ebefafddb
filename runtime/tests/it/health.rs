use bonafide_runtime::health::{Readiness, serve_http};
use bonafide_runtime::shutdown::Shutdown;
use bonafide_runtime::telemetry::metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn ask(addr: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn supervisors_are_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
    let guard = readiness.register("server.ca");
    let task = tokio::spawn(serve_http(listener, readiness, metrics(), shutdown.clone()));

    let answer = ask(addr, &get("/ready")).await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(answer.contains(r#"{"server.ca":{"live":true,"ready":false,"why":"starting"}}"#), "{answer}");
    guard.ready();
    assert!(ask(addr, &get("/ready")).await.starts_with("HTTP/1.1 200 "));
    assert!(ask(addr, &get("/live")).await.starts_with("HTTP/1.1 200 "));
    guard.failed("the store is corrupt");
    assert!(ask(addr, &get("/live")).await.starts_with("HTTP/1.1 500 "));
    let answer = ask(addr, &get("/metrics")).await;
    assert!(answer.contains("process_resident_memory_bytes "), "{answer}");
    assert!(answer.contains("bonafide_listener_accept_errors_total{listener=\"health\"} 0"), "{answer}");
    for name in answer.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(answer.contains(&format!("# HELP {name} ")), "{name} is in no table of metrics");
    }

    let large = format!("GET /live HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let answer = ask(addr, &large).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");

    // A connection that says nothing does not hold up the shutdown.
    let _silent = TcpStream::connect(addr).await.unwrap();
    shutdown.trigger();
    tokio::time::timeout(std::time::Duration::from_secs(5), task).await.expect("ends").unwrap().unwrap();
}
