package stats

// Process is a Store in this process's memory, for one Collector.
type Process struct {
	numbers *Numbers
	records Records
}

// Records are the records in memory. Usage returns how many there are, how many bytes they take, and how many were evicted.
type Records interface {
	Usage() (records int, bytes, dropped int64)
}

// NewProcess returns an empty store. records gives its memory figure.
func NewProcess(records Records) *Process {
	return &Process{numbers: NewNumbers(), records: records}
}

// Kind implements Store.
func (p *Process) Kind() string { return "memory" }

// Add implements Store. It never fails.
func (p *Process) Add(_ string, _, now int64, numbers *Numbers, limits Limits) error {
	p.numbers.Add(numbers, limits.MaxEndpoints)
	p.numbers.Prune(now, limits.TTL)
	return nil
}

// Load implements Store. It never fails.
func (p *Process) Load() (*Numbers, error) {
	return p.numbers.copy(), nil
}

// Measure implements Store. A step in memory takes no time worth a measurement.
func (p *Process) Measure() {}

// Steps implements Store.
func (p *Process) Steps() map[string]*Histogram { return nil }

// Trouble implements Store. There is none.
func (p *Process) Trouble() error { return nil }

// Memory implements Store. It never fails.
func (p *Process) Memory() (Memory, error) {
	records, bytes, _ := p.records.Usage()
	return Memory{Keys: int64(records), Bytes: bytes, Looked: 1, Estimated: true}, nil
}
