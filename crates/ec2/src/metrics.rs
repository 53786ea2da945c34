//! What `/metrics` tells Prometheus of this door.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// What the door counts about itself.
pub struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
}

impl Metrics {
    /// The counters, in a registry.
    ///
    /// # Errors
    /// [`prometheus::Error`] if the registry has them already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "holm_ec2_requests_total",
                    "Requests answered, by action and error code (OK: none).",
                ),
                &["action", "code"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "holm_ec2_request_duration_seconds",
                    "Time from a request's end to its answer, by action.",
                )
                .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
                &["action"],
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        Ok(metrics)
    }

    /// Counts an answer. An action that was not recognized is `none`: what
    /// clients invent makes no time series.
    pub fn answered(&self, action: &str, code: &str, took: Duration) {
        let action = if action.is_empty() { "none" } else { action };
        let code = if code.is_empty() { "OK" } else { code };
        self.requests.with_label_values(&[action, code]).inc();
        let timer = self.duration.with_label_values(&[action]);
        timer.observe(took.as_secs_f64());
    }
}
