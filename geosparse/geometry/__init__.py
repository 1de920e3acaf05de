"""The paper in pure tensor functions: separation, tail errors, sinks, envelopes and regimes."""
