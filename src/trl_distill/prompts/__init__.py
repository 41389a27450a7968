"""From a row's text or conversation and a template to a prompt's token ids."""
