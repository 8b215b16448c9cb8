"""Draw samples from a run: uv run sample.py WORKDIR [--option value ...]; see --help."""

if __name__ == "__main__":
    from jaxdiff.cli import sample_main

    raise SystemExit(sample_main())
