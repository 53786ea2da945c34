//! The simulated host keeps the drivers' contract.

mod contract;

use host::{Simulated, SimulatedConfig};
use machine_protocol::launch::{Engine, LAUNCH_VERSION, Launch};

#[tokio::test]
async fn it_keeps_the_contract() {
    let (driver, _changes) = Simulated::new(SimulatedConfig {
        guests_listen: false,
        ..SimulatedConfig::default()
    });
    let launch = Launch {
        version: LAUNCH_VERSION,
        number: 1,
        engine: Engine::Auto,
        serial_log_bytes: 1 << 20,
        machine: serde_json::json!({}),
    };
    contract::machine(&driver, "i-0123456789abcdef0", launch).await;
}
