//! What every driver does. The simulated one runs it in this crate; the real
//! one in `holm`'s tests, with machines.

use host::{Driver, Observed};
use machine_protocol::launch::{Ended, Launch};

/// A machine's life, with every step repeated. `launch` has the number 1 and
/// starts a machine whose guest need not listen.
pub async fn machine(driver: &dyn Driver, id: &str, mut launch: Launch) {
    assert_eq!(driver.observe(id).await.unwrap(), Observed::Absent);
    for _ in 0..2 {
        driver.press_power_button(id).await.unwrap();
        driver.kill(id).await.unwrap();
        driver.remove(id).await.unwrap();
        driver.detach_disk(id, "none", true).await.unwrap();
    }
    assert!(driver.console_log(id, 100).await.unwrap().is_empty());

    driver.launch(id, &launch).await.unwrap();
    let first = running(driver, id, 1).await;
    let mut later = launch.clone();
    later.number = 2;
    driver.launch(id, &later).await.unwrap();
    assert_eq!(running(driver, id, 1).await, first, "it is another machine");
    driver.press_power_button(id).await.unwrap();
    let inventory = driver.inventory().await.unwrap();
    assert!(inventory.machines.contains(&id.to_owned()));

    for _ in 0..2 {
        driver.kill(id).await.unwrap();
        match driver.observe(id).await.unwrap() {
            Observed::Ended { number: 1, end } => {
                assert!(matches!(end.how, Some(Ended::Killed | Ended::PoweredOff)));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(driver.console_log(id, 100).await.unwrap().len() <= 100);
    launch.number = 2;
    driver.launch(id, &launch).await.unwrap();
    running(driver, id, 2).await;
    let error = driver.remove(id).await.unwrap_err();
    assert!(error.to_string().contains("it runs"), "{error}");
    driver.kill(id).await.unwrap();
    for _ in 0..2 {
        driver.remove(id).await.unwrap();
        assert_eq!(driver.observe(id).await.unwrap(), Observed::Absent);
    }
    let inventory = driver.inventory().await.unwrap();
    assert!(!inventory.machines.contains(&id.to_owned()));
}

async fn running(driver: &dyn Driver, id: &str, number: u64) -> u32 {
    match driver.observe(id).await.unwrap() {
        Observed::Running { number: n, facts } if n == number => facts.pid,
        other => panic!("it should run: {other:?}"),
    }
}
