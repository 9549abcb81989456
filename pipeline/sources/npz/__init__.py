"""npz files, one episode each."""
