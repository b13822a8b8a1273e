package redisclient

import (
	"errors"
	"fmt"
	"log"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Sentinel says under which name sentinels know the master, and how to log in to them.
type Sentinel struct {
	MasterName   string // empty: there are no sentinels
	Username     string // empty: the default user
	Password     string // empty: no login, unless PasswordFile is set
	PasswordFile string // read at every connect
}

// askPause is the time between two questions to one sentinel, and so the longest delay before a promotion is noticed.
const askPause = 100 * time.Millisecond

// oldAnswers is how often in a row the only sentinel must name the master of an older configuration before that counts.
const oldAnswers = 30

var (
	errNoMaster  = errors.New("no sentinel has named the master yet")
	errNotMaster = errors.New("another server is the master now")
	errDemoted   = errors.New("it is a replica now, and the sentinels have not named another master yet")
)

// master is what is known of the server that the sentinels name. Each sentinel is asked again and again. The newest
// configuration counts: a sentinel that was cut off may go on naming the old master.
type master struct {
	mu      sync.Mutex             // guards everything below
	changed *sync.Cond             // of mu: address has changed, or a dial has waited long enough
	address string                 // of the master; empty: not known yet
	epoch   int64                  // number of the configuration in which it became the master
	conns   map[*connSlot]net.Conn // to address; some may be closed already
	said    []string               // last answer of each sentinel; empty: it gave none
	errs    []error                // why it gave none
	old     int                    // answers in a row of the only sentinel that were of an older configuration
	closed  bool
}

// watcher asks one sentinel. Only one call of poll runs at a time.
type watcher struct {
	master *master
	opts   Options // of the sentinel
	name   string  // of the master
	place  int     // of the sentinel in master.said
	conn   redis.Conn
	timer  *time.Timer // guarded by master.mu
}

// newMaster starts to ask the sentinels of opts.
func newMaster(opts Options) *master {
	addresses := strings.Split(opts.Address, ",")
	name := opts.Sentinel.MasterName
	m := &master{conns: map[*connSlot]net.Conn{}, said: make([]string, len(addresses)), errs: make([]error, len(addresses))}
	m.changed = sync.NewCond(&m.mu)
	opts.Username = opts.Sentinel.Username
	opts.Password = opts.Sentinel.Password
	opts.PasswordFile = opts.Sentinel.PasswordFile
	opts.DB = 0
	for place, address := range addresses {
		opts.Address = address
		startWatch(&watcher{master: m, opts: opts, name: name, place: place})
	}
	return m
}

func startWatch(w *watcher) {
	w.master.mu.Lock()
	defer w.master.mu.Unlock()
	w.timer = time.AfterFunc(0, w.poll)
}

// close ends the questions. A client that still connects uses the last known master.
func (m *master) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
}

// poll asks once.
func (w *watcher) poll() {
	defer w.reschedule()
	address, epoch, err := w.ask()
	if err != nil {
		w.disconnect()
		err = fmt.Errorf("sentinel %s: %w", w.opts.Address, err)
	}
	if !w.master.update(w.place, address, epoch, err) {
		w.disconnect() // behind the address of a load balancer, another sentinel may be next
	}
}

// reschedule ends a panic of poll, and calls poll again after askPause.
func (w *watcher) reschedule() {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"asking a sentinel failed\" cause=%q", p)
	}
	w.master.mu.Lock()
	defer w.master.mu.Unlock()
	if w.master.closed {
		w.disconnect()
	} else {
		w.timer.Reset(askPause)
	}
}

func (w *watcher) disconnect() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// ask returns the master's address and, if the address is new, the number of the configuration.
func (w *watcher) ask() (string, int64, error) {
	if w.conn == nil {
		conn, err := connect(&w.opts, w.opts.Address)
		if err != nil {
			return "", 0, err
		}
		w.conn = conn
	}
	address, err := w.masterAddress()
	if err != nil || !w.master.elsewhere(address) {
		return address, 0, err
	}
	reply, err := w.conn.Do("SENTINEL", "MASTER", w.name)
	if err != nil {
		return "", 0, err
	}
	again, err := w.masterAddress()
	if err != nil || again != address { // the master is changing
		return "", 0, err
	}
	fields := elements(reply)
	for i := 0; i+1 < len(fields); i += 2 {
		if text(fields[i]) == "config-epoch" {
			epoch, err := strconv.ParseInt(text(fields[i+1]), 10, 64)
			return address, epoch, err
		}
	}
	return "", 0, unexpected("SENTINEL MASTER", reply)
}

func (w *watcher) masterAddress() (string, error) {
	reply, err := w.conn.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", w.name)
	if err != nil {
		return "", err
	}
	pair := elements(reply)
	if len(pair) != 2 {
		return "", fmt.Errorf("it knows no master %q", w.name)
	}
	return net.JoinHostPort(text(pair[0]), text(pair[1])), nil
}

// update stores what a sentinel said. Its address becomes the master's if no master is known, if its configuration is newer,
// or if most sentinels name it and none names another: then an administrator has reset the configuration numbers. The only one
// that is named has to say so again and again. update returns false if it is to be asked over a new connection.
func (m *master) update(place int, address string, epoch int64, err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said[place] = address
	m.errs[place] = err
	if address == m.address {
		m.old = 0
	}
	if address == "" || address == m.address {
		return true
	}
	agreed := 0
	for _, said := range m.said {
		switch said {
		case address:
			agreed++
		case "":
		default:
			agreed -= len(m.said)
		}
	}
	older := m.address != "" && epoch <= m.epoch
	if older && agreed <= len(m.said)/2 {
		return true
	}
	if older && len(m.said) == 1 {
		m.old++
		if m.old < oldAnswers {
			return false
		}
	}
	m.old = 0
	if m.address != "" {
		log.Printf("level=warn msg=\"another Redis is the master now\" master=%q before=%q", address, m.address)
	}
	m.address = address
	m.epoch = epoch
	// Senders that wait for a reply of the old master send again, to the new one.
	for _, conn := range m.conns {
		_ = conn.Close()
	}
	m.conns = map[*connSlot]net.Conn{}
	m.changed.Broadcast()
	return true
}

// elsewhere reports whether the master's address is another one, or not known.
func (m *master) elsewhere(address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.address != address
}

// current returns the master's address; empty if it is not known.
func (m *master) current() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.address
}

// await returns the master's address as soon as one other than except is known, or an error at the deadline.
func (m *master) await(except string, deadline time.Time) (string, error) {
	timer := time.AfterFunc(time.Until(deadline), m.wake)
	defer timer.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.address == except && time.Now().Before(deadline) {
		m.changed.Wait()
	}
	if m.address != except {
		return m.address, nil
	}
	if except != "" {
		return "", errDemoted
	}
	cause := errNoMaster
	for _, err := range m.errs {
		if err != nil {
			cause = fmt.Errorf("%w; %w", cause, err)
		}
	}
	return "", cause
}

// wake wakes all calls of await, so that they notice their deadline.
func (m *master) wake() {
	defer recovered("waiting for a master")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changed.Broadcast()
}

// track has conn closed as soon as the master is not at address any more. It returns false if that is so already.
func (m *master) track(slot *connSlot, conn net.Conn, address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.address != address {
		return false
	}
	m.conns[slot] = conn
	return true
}

// dialMaster connects slot to the master. A server that says it is a replica is not the master any more, whatever the
// sentinels say: then dialMaster waits for the next one, within the time for connecting.
func dialMaster(c *Client, slot *connSlot) error {
	deadline := time.Now().Add(c.opts.DialTimeout)
	except := ""
	for {
		address, err := c.master.await(except, deadline)
		if err == nil {
			err = open(c, slot, address)
		}
		if err != nil {
			return err
		}
		reply, err := slot.conn.Do("ROLE")
		role := elements(reply)
		if err != nil || len(role) == 0 || text(role[0]) == "master" { // an error may be that the user lacks the permission
			return nil
		}
		disconnect(slot)
		except = address
	}
}
