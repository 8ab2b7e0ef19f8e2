//! The network's floor: one round trip over the loopback between two threads that sleep until they are
//! asked, with nothing around it. A hop is at least one.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::report::{Figures, Metric, median, quantile};

/// As large as a small request.
const BYTES: usize = 256;

pub(crate) fn floor(time_max: Duration) -> Result<Figures> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut asking = TcpStream::connect(listener.local_addr()?)?;
    let (mut answering, _) = listener.accept()?;
    asking.set_nodelay(true)?;
    answering.set_nodelay(true)?;
    let answerer = thread::spawn(move || {
        let mut block = [0; BYTES];
        // It ends when the other side has gone.
        while answering.read_exact(&mut block).is_ok() && answering.write_all(&block).is_ok() {}
    });
    let ends = Instant::now() + time_max;
    let mut milliseconds = Vec::new();
    let mut block = [0x5a; BYTES];
    while Instant::now() < ends {
        let begun = Instant::now();
        asking.write_all(&block)?;
        asking.read_exact(&mut block)?;
        milliseconds.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    drop(asking);
    answerer.join().ok();
    Ok(vec![(Metric::Median, median(&milliseconds)), (Metric::P99, quantile(&milliseconds, 0.99))])
}
