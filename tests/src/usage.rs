//! What a running process uses and says of itself.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Ticks of `/proc/<pid>/stat` in a second: a constant of Linux's interface to programs, whatever the kernel counts in.
const TICKS: f64 = 100.0;

/// Processor seconds that a process has used so far, its own and the kernel's on its behalf.
///
/// # Panics
/// There is no such process.
#[must_use]
pub fn processor_seconds(pid: u32) -> f64 {
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_else(|error| panic!("{pid}: {error}"));
    // The name, in parentheses, may hold spaces. After it come the state and ten numbers, then utime and stime.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
        / TICKS
}

/// The sum of a metric over all its labels, from the page at `address`; 0 for one that was never counted.
///
/// # Errors
/// The page cannot be had.
pub fn metric(address: &str, name: &str) -> Result<f64, String> {
    let mut stream = TcpStream::connect(address).map_err(|error| format!("{address}: {error}"))?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut page = String::new();
    stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.read_to_string(&mut page))
        .map_err(|error| format!("{address}: {error}"))?;
    if !page.starts_with("HTTP/1.1 200") {
        return Err(format!("{address}: {}", page.lines().next().unwrap_or_default()));
    }
    let value = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let of = series.split('{').next()?;
        if of == name { value.parse::<f64>().ok() } else { None }
    };
    Ok(page.lines().filter_map(value).sum())
}
