pub struct Simulated; pub struct SimulatedConfig; pub enum Fault { A }
