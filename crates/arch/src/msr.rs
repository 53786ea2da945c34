//! Model-specific register numbers (SDM vol. 4).
