package stats

// Memory is how much the plugin's records take.
type Memory struct {
	Keys      int64   // keys measured
	Bytes     int64   // taken by those
	Exact     bool    // every key was measured
	Scanned   float64 // share of the keyspace that was looked at; 1 = all
	Estimated bool    // memory of a process, estimated by the plugin
}

// likely returns how much memory the records take: as measured, or extrapolated from the part that was looked at.
func (m Memory) likely() int64 {
	if m.Scanned <= 0 || m.Scanned >= 1 {
		return m.Bytes
	}
	return int64(float64(m.Bytes) / m.Scanned)
}

// ProcessStore is a Store in this process's memory, for one Collector, whose lock io guards it.
type ProcessStore struct {
	numbers *Numbers
	records Records
}

// Records are the records in memory. Usage returns how many there are, how many bytes they take, and how many were evicted.
type Records interface {
	Usage() (records int, bytes, evicted int64)
}

// NewProcessStore returns an empty store. records gives its memory figure.
func NewProcessStore(records Records) *ProcessStore {
	return &ProcessStore{numbers: NewNumbers(), records: records}
}

// Kind implements Store.
func (p *ProcessStore) Kind() string { return "memory" }

// Add implements Store. It never fails.
func (p *ProcessStore) Add(_ string, _, now int64, numbers *Numbers, limits Limits) error {
	p.numbers.Add(numbers, limits.MaxEndpoints)
	p.numbers.Prune(now, limits.TTL)
	return nil
}

// Load implements Store. It never fails.
func (p *ProcessStore) Load() (*Numbers, error) {
	return p.numbers.copy(), nil
}

// SampleSteps implements Store. A step in memory takes no time worth a measurement.
func (p *ProcessStore) SampleSteps() {}

// Steps implements Store.
func (p *ProcessStore) Steps() map[string]*Histogram { return nil }

// Trouble implements Store. There is none.
func (p *ProcessStore) Trouble() error { return nil }

// Memory implements Store. It never fails.
func (p *ProcessStore) Memory() (Memory, error) {
	records, bytes, _ := p.records.Usage()
	return Memory{Keys: int64(records), Bytes: bytes, Scanned: 1, Estimated: true}, nil
}
