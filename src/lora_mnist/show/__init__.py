"""Tables, verdict, figures, report and logger pages of a finished run."""
