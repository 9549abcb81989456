"""Looking at shards and at sources: what they hold, whether they are whole, and a page to see it on."""
