"""`python -m deploy_rnn` is `deploy-rnn`."""

from deploy_rnn.cli import main

main(prog_name="deploy-rnn")
