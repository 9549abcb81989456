"""Style sheets, scripts and templates of the prediction pages and the play page, read with `pipeline.web.page.asset`."""
