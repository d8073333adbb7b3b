//! Switches on the features of shared dependencies that some program needs, so that building one package (`-p train`) and building the workspace
//! compile the same dependencies once. Holds no code.
