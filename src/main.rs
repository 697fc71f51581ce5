//! The `feast-prefork` binary.

fn main() -> std::process::ExitCode {
    feast_prefork::cli::main()
}
