//! What `/metrics` tells Prometheus.

use std::time::Duration;

use control::{QuotaReport, View};
use model::{Instance, Volume};
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// What the interface counts about itself.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    /// Requests that are being answered.
    pub in_flight: IntGauge,
    /// Requests refused because their caller asks too often.
    pub limited: IntCounter,
    /// Watches that are open.
    pub watches: IntGauge,
    instances: IntGaugeVec,
    volumes: IntGaugeVec,
    quota_limits: IntGaugeVec,
    quota_used: IntGaugeVec,
    boots: IntGaugeVec,
    boot_seconds: GaugeVec,
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
                    "holm_api_requests_total",
                    "Requests answered, by method, path and status.",
                ),
                &["method", "path", "status"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "holm_api_request_duration_seconds",
                    "Time from a request's header to its answer's.",
                )
                .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
                &["method", "path"],
            )?,
            in_flight: IntGauge::new(
                "holm_api_requests_in_flight",
                "Requests that are being answered.",
            )?,
            limited: IntCounter::new(
                "holm_api_requests_limited_total",
                "Requests refused because their caller asks too often.",
            )?,
            watches: IntGauge::new("holm_api_watches", "Watches that are open.")?,
            instances: IntGaugeVec::new(
                Opts::new("holm_instances", "Instances, by state."),
                &["state"],
            )?,
            volumes: IntGaugeVec::new(Opts::new("holm_volumes", "Volumes, by state."), &["state"])?,
            quota_limits: IntGaugeVec::new(
                Opts::new("holm_quota_limit", "How much the account may have."),
                &["quota"],
            )?,
            quota_used: IntGaugeVec::new(
                Opts::new("holm_quota_used", "How much the account has."),
                &["quota"],
            )?,
            boots: IntGaugeVec::new(
                Opts::new(
                    "holm_image_boots",
                    "Last boots of the instances of an image, by their end.",
                ),
                &["image", "end"],
            )?,
            boot_seconds: GaugeVec::new(
                Opts::new(
                    "holm_image_boot_seconds",
                    "Time from the start of an image's instances to a guest that is up.",
                ),
                &["image", "quantile"],
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.limited.clone()))?;
        registry.register(Box::new(metrics.watches.clone()))?;
        registry.register(Box::new(metrics.instances.clone()))?;
        registry.register(Box::new(metrics.volumes.clone()))?;
        registry.register(Box::new(metrics.quota_limits.clone()))?;
        registry.register(Box::new(metrics.quota_used.clone()))?;
        registry.register(Box::new(metrics.boots.clone()))?;
        registry.register(Box::new(metrics.boot_seconds.clone()))?;
        Ok(metrics)
    }

    /// Counts an answer.
    pub fn answered(&self, method: &str, path: &str, status: u16, took: Duration) {
        let status = status.to_string();
        let labels = [method, path, status.as_str()];
        self.requests.with_label_values(&labels).inc();
        self.timer(method, path).observe(took.as_secs_f64());
    }

    /// Counts what there is.
    pub fn count(&self, view: &View) {
        self.instances.reset();
        for found in view.all::<Instance>() {
            let state = [found.record.state.name()];
            self.instances.with_label_values(&state).inc();
        }
        self.volumes.reset();
        for found in view.all::<Volume>() {
            let state = [found.record.state.name()];
            self.volumes.with_label_values(&state).inc();
        }
        self.count_boots(view);
    }

    /// Counts boots, by images.
    fn count_boots(&self, view: &View) {
        self.boots.reset();
        self.boot_seconds.reset();
        for times in control::boot_times(&view.all::<Instance>()) {
            let image = times.image.as_str();
            for (end, number) in [("ready", times.boots), ("failed", times.failed)] {
                let boots = self.boots.with_label_values(&[image, end]);
                boots.set(i64::try_from(number).unwrap_or(i64::MAX));
            }
            if times.boots > 0 {
                for (quantile, time) in [("0.5", times.p50), ("0.99", times.p99)] {
                    let gauge = self.boot_seconds.with_label_values(&[image, quantile]);
                    gauge.set(time.as_secs_f64());
                }
            }
        }
    }

    /// Counts what the account may have and has.
    pub fn quotas(&self, reports: &[QuotaReport]) {
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        for report in reports {
            let name = [report.quota.name()];
            let limit = self.quota_limits.with_label_values(&name);
            limit.set(gauge(report.limit));
            if let Some(used) = report.used {
                self.quota_used.with_label_values(&name).set(gauge(used));
            }
        }
    }

    fn timer(&self, method: &str, path: &str) -> Histogram {
        self.duration.with_label_values(&[method, path])
    }
}

/// Subtracts one when it goes.
pub struct Held(IntGauge);

impl Held {
    /// Adds one now.
    #[must_use]
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
